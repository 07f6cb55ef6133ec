"""The mathematics of binary super-resolution in PyTorch. It knows nothing of BasicSR.

- sign.py: Sign and its straight-through estimators.
- accumulation.py: bit accumulation (BAM); alpha.py: its eq. 6.
- weights.py, activations.py: the binarizers and their tables.
- binary_conv.py: BinaryConv2d.
- methods.py: the published methods; layers.py: BinaryLayer and BinaryChain; blocks.py: LBBlock and HPBBlock.
- fast/: the fused path of training and its passes in C.
- mixing/: binarize(), which puts binary convolutions into any network by a recipe.
"""

from bam_plugin.nn.accumulation import ActivationScale, accumulate_filters, normalize_filters
from bam_plugin.nn.activations import ACTIVATION_BINARIZERS, BatchNormSign, set_progress
from bam_plugin.nn.binary_conv import BinaryConv2d
from bam_plugin.nn.blocks import HPBBlock, LBBlock
from bam_plugin.nn.layers import BinaryChain, BinaryLayer, DepthwiseResidual, RPReLU, body_conv
from bam_plugin.nn.methods import METHODS, Method, make_method
from bam_plugin.nn.mixing.recipe import Recipe, SwapError
from bam_plugin.nn.mixing.report import SwapReport
from bam_plugin.nn.mixing.swap import binarize
from bam_plugin.nn.sign import ESTIMATORS, clipped_sign, decaying_sign, identity_sign, polynomial_sign, sign
from bam_plugin.nn.weights import WEIGHT_BINARIZERS, BAMWeight

__all__ = [
    "ACTIVATION_BINARIZERS",
    "ESTIMATORS",
    "METHODS",
    "WEIGHT_BINARIZERS",
    "ActivationScale",
    "BAMWeight",
    "BatchNormSign",
    "BinaryChain",
    "BinaryConv2d",
    "BinaryLayer",
    "DepthwiseResidual",
    "HPBBlock",
    "LBBlock",
    "Method",
    "RPReLU",
    "Recipe",
    "SwapError",
    "SwapReport",
    "accumulate_filters",
    "binarize",
    "body_conv",
    "clipped_sign",
    "decaying_sign",
    "identity_sign",
    "make_method",
    "normalize_filters",
    "polynomial_sign",
    "set_progress",
    "sign",
]
