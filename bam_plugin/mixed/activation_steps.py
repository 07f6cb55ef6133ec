"""What an activation binarizer is in a packed file: one threshold and direction per channel and base.

The binarizer describes its step functions (`ActivationBinarizer.steps`); here bisection finds the float at which each
steps, with the binarizer's own code (`thresholds.py`).
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from bam_plugin.nn.activations import ActivationBinarizer, Step, batch_norm_affine
from bam_plugin.packed.errors import ConversionError
from bam_plugin.packed.thresholds import step_thresholds

# Values at which a step function is tried out: the usual ones, and a few beyond.
_PROBES = torch.cat([torch.linspace(-4, 4, 257), torch.tensor([-1e30, -1e3, -30.0, 30.0, 1e3, 1e30])]).sort().values


def finite_array(tensor: Tensor, where: str) -> np.ndarray:
    """A parameter as float32; a ConversionError if it is not finite."""
    array = tensor.detach().cpu().numpy().astype(np.float32)
    if not np.isfinite(array).all():
        raise ConversionError(f"{where}: a parameter is not finite; the checkpoint is from a run that diverged")
    return array


def check_finite(module: nn.Module, where: str) -> None:
    """A ConversionError if a parameter or statistic of `module` is not finite."""
    for tensor in module.state_dict().values():
        finite_array(tensor, where)


def norm_affine(norm: nn.BatchNorm2d, where: str) -> tuple[np.ndarray, np.ndarray]:
    """The float32 scale and shift (C,) of an evaluated BatchNorm, see `batch_norm_affine`."""
    check_finite(norm, where)
    try:
        scale, shift = batch_norm_affine(norm)
    except ValueError as error:
        raise ConversionError(f"{where}: {error} and cannot pack") from error
    return finite_array(scale, where), finite_array(shift, where)


def activation_steps(activation: ActivationBinarizer, where: str) -> list[tuple[np.ndarray, np.ndarray, Tensor | None]]:
    """(threshold (C,), flip (C,), factor or None) of each base of `activation`; `where` names it in errors."""
    check_finite(activation, where)
    try:
        steps = copy.deepcopy(activation).cpu().float().eval().steps()
    except ValueError as error:
        raise ConversionError(f"{where}: {error} and cannot pack") from error
    return [(*_threshold(step, where), step.factor) for step in steps]


@torch.no_grad()
def _threshold(step: Step, where: str) -> tuple[np.ndarray, np.ndarray]:
    marks = step.is_high(_PROBES.expand(1, len(step.scale), 1, -1))
    if (marks[..., :-1] & ~marks[..., 1:]).any():
        raise ConversionError(
            f"{where}: its map is no step function of the value, low and then high, and cannot pack; see "
            "bam_plugin.nn.activations"
        )

    def positive(values: np.ndarray) -> np.ndarray:
        return step.is_high(torch.from_numpy(values).view(1, -1, 1, 1)).view(-1).numpy()

    return step_thresholds(finite_array(step.scale, where), finite_array(step.shift, where), positive)
