"""The building blocks of BSRN under their own names in ARCH_REGISTRY, for networks composed from option files."""

from basicsr.utils.registry import ARCH_REGISTRY

from bam_plugin.nn.binary_conv import BinaryConv2d
from bam_plugin.nn.blocks import HPBBlock, LBBlock

for _block in (BinaryConv2d, LBBlock, HPBBlock):
    ARCH_REGISTRY.register(_block)
