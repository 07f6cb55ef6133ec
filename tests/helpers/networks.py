"""Small networks for tests: BSRN, every registered network, hosts of BasicSR, and what a training leaves in them."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)

SMALL_BSRN = {
    "type": "BSRN",
    "num_feat": 16,
    "num_hpb": 2,
    "num_lb": 2,
    "upscale": 4,
    "upsampler": "pixelshuffledirect",
}
# Options that make each network small. Every registered network needs a row here or in tests/archs/test_registry.py.
SMALL_ARCHS = {
    "BBCU": {"num_feat": 8, "num_block": 2},
    "BSRN": {"num_feat": 8, "num_hpb": 2},
    "PlainBSR": {"num_feat": 8, "num_group": 2, "num_convs": 2, "stem_feat": 4, "depthwise": True},
    "SRResNet": {"num_feat": 8, "num_block": 2},
    "VDSR": {"num_feat": 8, "num_layers": 8},
}
COMMON = {"num_in_ch": 3, "num_out_ch": 3}
EDSR = {**COMMON, "num_feat": 8, "num_block": 2, "upscale": 2}
RCAN = {**COMMON, "num_feat": 8, "num_group": 1, "num_block": 2, "squeeze_factor": 4, "upscale": 2}
ECBSR = {**COMMON, "num_block": 2, "num_channel": 8, "with_idt": True, "act_type": "prelu", "scale": 2}
SWINIR = {
    "upscale": 2, "img_size": 8, "window_size": 4, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2],
    "mlp_ratio": 2, "upsampler": "pixelshuffle", "resi_connection": "1conv",
}  # fmt: skip
# Small hosts: (options, scale, convolutions, binarized by the default recipe, sizes of the groups).
HOSTS = {
    "EDSR": (EDSR, 2, 8, 6, [1, 1, 2, 2]),
    "MSRResNet": (EDSR, 2, 8, 6, [1, 1, 2, 2]),
    "RCAN": (RCAN, 2, 13, 7, [1, 1, 1, 2, 2]),
    "SRVGGNetCompact_basicsr": ({**COMMON, "num_feat": 8, "num_conv": 4, "upscale": 2}, 2, 6, 4, [4]),
    "RIDNet": ({"in_channels": 3, "mid_channels": 16, "out_channels": 3, "num_block": 1}, 1, 16, 6, [1, 1, 2, 2]),
    "ECBSR": (ECBSR, 2, 4, 2, [1, 1]),
    "RRDBNet": ({**COMMON, "num_feat": 8, "num_block": 1, "num_grow_ch": 4, "scale": 4}, 4, 21, 19, [1] * 17 + [2]),
    "SwinIR": (SWINIR, 2, 7, 5, [1] * 5),
}


def enliven(network: Network) -> Network:
    """Statistics, affine parameters and factors as a training leaves them: no ones and zeros."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.normal_()
            module.bias.data.normal_(0, 0.3)
    for name, parameter in network.named_parameters():
        if "beta" in name or "alpha" in name:
            parameter.data.uniform_(-0.3, 0.4)
    return network
