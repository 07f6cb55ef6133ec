"""The mathematics of binary super-resolution in PyTorch; knows nothing of BasicSR.

sign.py: Sign and its straight-through estimators. accumulation.py: bit accumulation (BAM). binarizers.py: the tables of
weight and activation binarizers. binary_conv.py: BinaryConv2d. blocks.py: LBBlock and HPBBlock.
"""

from bam_plugin.nn.accumulation import ActivationScale, accumulate_filters, normalize_filters
from bam_plugin.nn.binarizers import ACTIVATION_BINARIZERS, WEIGHT_BINARIZERS, BAMWeight, BatchNormSign
from bam_plugin.nn.binary_conv import BinaryConv2d
from bam_plugin.nn.blocks import HPBBlock, LBBlock
from bam_plugin.nn.sign import ESTIMATORS, clipped_sign, identity_sign, polynomial_sign, sign

__all__ = [
    "ACTIVATION_BINARIZERS",
    "ESTIMATORS",
    "WEIGHT_BINARIZERS",
    "ActivationScale",
    "BAMWeight",
    "BatchNormSign",
    "BinaryConv2d",
    "HPBBlock",
    "LBBlock",
    "accumulate_filters",
    "clipped_sign",
    "identity_sign",
    "normalize_filters",
    "polynomial_sign",
    "sign",
]
