"""The tables of weight and activation binarizers: any row of one side works with any row of the other.

The interface of the rows is described in weights.py and activations.py; how papers combine them with skips and
normalizations is described in methods.py.
"""

from __future__ import annotations

from bam_plugin.nn.activations import (
    ABCActivation,
    ActivationBinarizer,
    BatchNormSign,
    DoReFaActivation,
    FloatActivation,
    PlainSign,
    RSign,
    XNORSign,
)
from bam_plugin.nn.weights import (
    ABCWeight,
    BAMWeight,
    BiRealWeight,
    BNNWeight,
    DoReFaWeight,
    ReActWeight,
    WeightBinarizer,
    XNORWeight,
    mean_magnitude,
    straight_through,
)

__all__ = [
    "ACTIVATION_BINARIZERS",
    "WEIGHT_BINARIZERS",
    "ABCActivation",
    "ABCWeight",
    "ActivationBinarizer",
    "BAMWeight",
    "BNNWeight",
    "BatchNormSign",
    "BiRealWeight",
    "DoReFaActivation",
    "DoReFaWeight",
    "FloatActivation",
    "PlainSign",
    "RSign",
    "ReActWeight",
    "WeightBinarizer",
    "XNORSign",
    "XNORWeight",
    "mean_magnitude",
    "straight_through",
]

WEIGHT_BINARIZERS: dict[str, type[WeightBinarizer]] = {
    "bam": BAMWeight,
    "bnn": BNNWeight,
    "dorefa": DoReFaWeight,
    "abc": ABCWeight,
    "xnor": XNORWeight,
    "bireal": BiRealWeight,
    "react": ReActWeight,
}
ACTIVATION_BINARIZERS: dict[str, type[ActivationBinarizer]] = {
    "bn_sign": BatchNormSign,
    "sign": PlainSign,
    "rsign": RSign,
    "dorefa": DoReFaActivation,
    "abc": ABCActivation,
    "xnor": XNORSign,
    "float": FloatActivation,
}
