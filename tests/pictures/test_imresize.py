"""MATLAB's bicubic: against hand-computed values, BasicSR's version, and the published bicubic numbers."""

from __future__ import annotations

import numpy as np
import pytest

from bam_plugin.pictures.imresize import ResizeError, bicubic_taps, imresize, mod_crop


def test_halving_weights_are_those_of_the_stretched_kernel() -> None:
    weights, indices = bicubic_taps(16, 8, 0.5)
    # Keys' kernel at +-0.25, +-0.75, +-1.25, +-1.75, halved: distances of 8 samples from the centre of an output pixel.
    expected = np.array([-3, -9, 29, 111, 111, 29, -9, -3]) / 256
    np.testing.assert_allclose(weights[:, 4], expected, atol=1e-15)
    np.testing.assert_array_equal(indices[:, 4], np.arange(5, 13))
    # Mirrored at the border, edge sample repeated.
    np.testing.assert_array_equal(indices[:, 0], [2, 1, 0, 0, 1, 2, 3, 4])


def test_doubling_weights_are_those_of_the_plain_kernel() -> None:
    weights, indices = bicubic_taps(8, 16, 2.0)
    used = weights[:, 8] != 0
    # Output 8 lies at 3.75 between the samples 2, 3, 4, 5.
    np.testing.assert_array_equal(indices[used, 8], [2, 3, 4, 5])
    np.testing.assert_allclose(weights[used, 8], np.array([-3, 29, 111, -9]) / 128, atol=1e-15)


@pytest.mark.parametrize("scale", [1 / 2, 1 / 3, 1 / 4, 2, 3, 4])
def test_agrees_with_basicsr(scale: float) -> None:
    from bam_plugin.toolbox import compat

    compat.apply()
    from basicsr.utils.matlab_functions import imresize as reference

    image = np.random.default_rng(0).random((48, 60, 3))
    ours = imresize(image, scale=scale)
    # BasicSR computes in float32; x3 upscaling loses most there (its sample positions are rounded).
    assert np.abs(ours - reference(image, scale)).max() < 1e-4
    grey = imresize(np.ascontiguousarray(image[..., 0]), scale=scale)
    np.testing.assert_allclose(grey, ours[..., 0], atol=1e-12)


def test_integers_are_rounded_once_half_up_and_saturated() -> None:
    image = np.random.default_rng(1).integers(0, 256, (24, 36, 3), dtype=np.uint8)
    image[:, 18:] = np.where(image[:, 18:] < 128, 0, 255)
    for scale in (0.5, 4):
        exact = imresize(image.astype(np.float64), scale=scale)
        assert exact.min() < 0 or exact.max() > 255 or scale < 1
        expected = np.clip(np.floor(exact + 0.5), 0, 255)
        np.testing.assert_array_equal(imresize(image, scale=scale), expected)
    wide = image.astype(np.uint16) * 257
    np.testing.assert_array_equal(
        imresize(wide, scale=0.5), np.clip(np.floor(imresize(wide.astype(float), scale=0.5) + 0.5), 0, 65535)
    )


def test_round_each_axis_rounds_between_the_axes() -> None:
    image = np.random.default_rng(2).integers(0, 256, (24, 36), dtype=np.uint8)
    rows = imresize(image, size=(12, 36))
    np.testing.assert_array_equal(imresize(image, scale=0.5, round_each_axis=True), imresize(rows, size=(12, 18)))
    assert (imresize(image, scale=0.5) != imresize(image, scale=0.5, round_each_axis=True)).any()


def test_sizes_types_and_constant_images() -> None:
    image = np.full((17, 23, 3), 0.37, np.float32)
    for scale, shape in ((1 / 4, (5, 6, 3)), (2, (34, 46, 3))):
        out = imresize(image, scale=scale)
        assert out.shape == shape and out.dtype == np.float32
        np.testing.assert_allclose(out, 0.37, atol=1e-6)
    assert imresize(image, size=(9, 40)).shape == (9, 40, 3)
    # Smaller than the kernel: the mirror repeats.
    assert imresize(np.full((1, 2), 9, np.uint8), scale=1 / 4).tolist() == [[9]]
    assert mod_crop(image, 12).shape == (12, 12, 3)
    with pytest.raises(ResizeError, match="exactly one"):
        imresize(image)
    with pytest.raises(ResizeError, match="int64"):
        imresize(np.zeros((4, 4), np.int64), scale=2)
    with pytest.raises(ResizeError, match="non-empty"):
        imresize(np.zeros((0, 4)), scale=2)
    with pytest.raises(ResizeError, match="positive"):
        imresize(image, scale=-1.0)
