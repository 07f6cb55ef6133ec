"""The network `Bicubic` is MATLAB's bicubic."""

from __future__ import annotations

import pytest
import torch

from bam_plugin.archs.bicubic_arch import Bicubic
from bam_plugin.pictures.imresize import imresize


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_equals_imresize(scale: int) -> None:
    images = torch.rand(2, 3, 7, 12)
    out = Bicubic(upscale=scale)(images)
    assert out.shape == (2, 3, 7 * scale, 12 * scale) and out.dtype == torch.float32
    for image, upscaled in zip(images, out, strict=True):
        expected = imresize(image.permute(1, 2, 0).double().numpy(), scale=scale)
        torch.testing.assert_close(upscaled.permute(1, 2, 0).double(), torch.from_numpy(expected), atol=1e-6, rtol=0)
