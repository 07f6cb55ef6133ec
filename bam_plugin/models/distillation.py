"""Distillation: a full-precision teacher shows a binary student its output and its features.

distill:
  network: {type: MSRResNet, ...}     the teacher, as under network_g
  path: experiments/.../net_g_latest.pth
  param_key: params_ema               default params
  full_precision: true                the teacher is a twin trained in the stage `float` (see stages); default false
  output_weight: 1.0                  mean |student - teacher| over the output
  feature_weight: 0.1                 see feature_distance
  features: [body]                    names of modules of both networks, or pairs [student's, teacher's]
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bam_plugin.errors import BamError
from bam_plugin.nn import set_progress
from bam_plugin.nn.binary_conv import set_mode
from bam_plugin.toolbox.networks import NetworkError, build_network


class DistillationError(BamError):
    """A teacher does not fit this student."""


def feature_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over the batch of the squared distance of the features (N, C, H, W), each scaled to norm 1 per image.

    The features of a binary network have another magnitude than the teacher's, so only their direction can be taught.
    The distance lies in [0, 4]: 0 for the same direction, 2 for orthogonal ones.
    """
    directions = (F.normalize(features.flatten(1).float(), dim=1) for features in (student, teacher))
    return (next(directions) - next(directions)).square().sum(1).mean()


class Teacher:
    """A frozen network beside the student. It gives its losses after each forward pass of the student.

    Args:
        network, student: the two networks; the teacher's parameters are frozen.
        features: names of modules, or (student's, teacher's) pairs of names.
        output_weight, feature_weight: factors of the two terms. A term with the factor 0 is not computed.
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        student: nn.Module,
        features: Sequence[str | Sequence[str]] = (),
        output_weight: float = 1.0,
        feature_weight: float = 0.0,
    ) -> None:
        if output_weight <= 0 and feature_weight <= 0:
            raise DistillationError("train.distill: output_weight and feature_weight are both 0; set one, or remove it")
        if (feature_weight > 0) != bool(features):
            raise DistillationError("train.distill: feature_weight and features belong together; give both or none")
        self.network = network.eval().requires_grad_(False)
        self.output_weight = output_weight
        self.feature_weight = feature_weight
        self._pairs = [(each, each) if isinstance(each, str) else tuple(each) for each in features]
        self._seen: dict[tuple[str, str], Tensor] = {}
        for ours, theirs in self._pairs:
            self._watch("student", student, ours)
            self._watch("teacher", network, theirs)

    def losses(self, lq: Tensor, output: Tensor) -> OrderedDict[str, Tensor]:
        """`l_distill` and `l_feature`, weighted, for the student's latest `output` (N, C, H, W) of the batch `lq`."""
        with torch.no_grad():
            target = self.network(lq).float()
        losses: OrderedDict[str, Tensor] = OrderedDict()
        if self.output_weight > 0:
            losses["l_distill"] = self.output_weight * F.l1_loss(output, target)
        if self.feature_weight > 0:
            distances = [self._distance(ours, theirs) for ours, theirs in self._pairs]
            losses["l_feature"] = self.feature_weight * torch.stack(distances).mean()
        return losses

    def _distance(self, ours: str, theirs: str) -> Tensor:
        student, teacher = self._seen.pop(("student", ours)), self._seen.pop(("teacher", theirs))
        if student.shape != teacher.shape:
            raise DistillationError(
                f"train.distill.features: the student's {ours} gives {tuple(student.shape)}, the teacher's {theirs} "
                f"{tuple(teacher.shape)}; choose modules of equal shape"
            )
        return feature_distance(student, teacher)

    def _watch(self, side: str, net: nn.Module, name: str) -> None:
        try:
            module = net.get_submodule(name)
        except AttributeError as error:
            examples = ", ".join(each for each, _ in net.named_children())
            raise DistillationError(
                f"train.distill.features: the {side} has no module {name!r}; it has {examples} and their modules"
            ) from error

        def keep(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            self._seen[side, name] = output

        module.register_forward_hook(keep)


def make_teacher(
    options: Mapping[str, Any], student: nn.Module, device: torch.device, load: Callable[..., None]
) -> Teacher:
    """The teacher that `options` (train.distill) describe; `load(net, path, strict, param_key)` is BasicSR's."""
    settings = dict(options)
    try:
        network, path = build_network(settings.pop("network")), settings.pop("path")
    except KeyError as error:
        raise DistillationError(f"train.distill.{error.args[0]} is missing") from error
    except NetworkError as error:
        raise DistillationError(f"train.distill.network: {error}") from error
    load(network, path, True, settings.pop("param_key", "params"))
    if settings.pop("full_precision", False):
        # The training of the twin is over, so its activation functions have their last shape.
        set_progress(network, 1.0)
        try:
            set_mode(network, "float")
        except ValueError as error:
            raise DistillationError(f"train.distill.full_precision: {error}") from error
    try:
        return Teacher(network=network.to(device), student=student, **settings)
    except TypeError as error:
        raise DistillationError(f"train.distill: {error}") from error
