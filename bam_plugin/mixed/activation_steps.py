"""What each activation binarizer is in a packed file: one threshold and direction per channel and base.

In evaluation every binarized activation is a step function of its channel's float (see `bam_plugin/nn/activations.py`);
`thresholds.py` finds the step, this module knows which function it is of.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from bam_plugin.nn.activations import (
    ABCActivation,
    ActivationBinarizer,
    BatchNormSign,
    DoReFaActivation,
    PlainSign,
    RSign,
    XNORSign,
)
from bam_plugin.packed.errors import ConversionError
from bam_plugin.packed.thresholds import batch_norm_affine, step_thresholds


def finite_array(tensor: Tensor, where: str) -> np.ndarray:
    """A parameter as float32; a ConversionError if it is not finite."""
    array = tensor.detach().cpu().numpy().astype(np.float32)
    if not np.isfinite(array).all():
        raise ConversionError(f"{where}: a parameter is not finite; the checkpoint is from a run that diverged")
    return array


def norm_affine(norm: nn.BatchNorm2d, where: str) -> tuple[np.ndarray, np.ndarray]:
    """The a and b of an evaluated BatchNorm, see `batch_norm_affine`."""
    if norm.running_mean is None or norm.running_var is None:
        raise ConversionError(f"{where}: a BatchNorm without running statistics depends on the image and cannot pack")
    gamma = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight
    beta = torch.zeros_like(norm.running_mean) if norm.bias is None else norm.bias
    mean, variance, gamma, beta = (finite_array(t, where) for t in (norm.running_mean, norm.running_var, gamma, beta))
    return batch_norm_affine(mean=mean, variance=variance, gamma=gamma, beta=beta, eps=norm.eps)


def activation_steps(
    activation: ActivationBinarizer, channels: int, where: str
) -> list[tuple[np.ndarray, np.ndarray, Tensor | None]]:
    """(threshold (C,), flip (C,), factor or None) of each base of `activation`; `where` names it in errors."""

    def half(y: np.ndarray) -> np.ndarray:
        return y >= np.float32(0.5)

    ones = np.ones(channels, dtype=np.float32)
    if isinstance(activation, BatchNormSign | XNORSign):
        steps = [step_thresholds(*norm_affine(activation.norm, where))]
    elif isinstance(activation, PlainSign):
        steps = [step_thresholds(ones, np.zeros_like(ones))]
    elif isinstance(activation, RSign):
        steps = [step_thresholds(ones, -finite_array(activation.threshold, where).reshape(-1))]
    elif isinstance(activation, DoReFaActivation):
        steps = [step_thresholds(*norm_affine(activation.norm, where), half)]
    elif isinstance(activation, ABCActivation):
        affine = norm_affine(activation.norm, where)
        shifts = finite_array(activation.shift, where)
        steps = [step_thresholds(*affine, lambda y, v=v: (y + v) - np.float32(0.5) >= 0) for v in shifts]
    else:
        raise ConversionError(f"{where}: the activation binarizer {type(activation).__name__} cannot be packed")
    factors = activation.factor.detach() if isinstance(activation, ABCActivation) else [None]
    return [(threshold, flip, factor) for (threshold, flip), factor in zip(steps, factors, strict=True)]
