"""Staged training: full precision first, then binary activations, then binary weights too.

    stages: {float: 20000, binary_activations: 20000}     iterations of each stage; all that follow are binary

In the stage `float` a binary convolution computes with its latent weights and with the function whose derivative its
estimator is: hardtanh for `clip`, and so on. In `binary_activations` it computes with signs and latent weights.
Parameters and normalizations are the same in all stages, so each stage goes on where the one before ended. Neither of
the two accumulates filters, so behind the last one the latents of an accumulation group take the values with which the
accumulated sums have the signs that the filters had alone (`hand_over`). A training of which the stages take
all iterations ends without that: with `float` alone it is that of the full-precision twin. Only BinarySRModel in
training knows stages: a checkpoint that is tested, converted or profiled is binary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bam_plugin.errors import BamError
from bam_plugin.nn import BinaryConv2d
from bam_plugin.nn.binarizers import ActivationBinarizer, BatchNormSign, PlainSign, RSign, XNORSign
from bam_plugin.nn.sign import PROGRESSIVE, decay_shape
from bam_plugin.nn.weights import BAMWeight, mean_magnitude

STAGES = ("float", "binary_activations")


class StageError(BamError):
    """The options under train.stages cannot be followed."""


def soft_sign(x: Tensor) -> Tensor:
    """The integral of the `polynomial` estimator: x (2 - |x|) inside [-1, 1], else -1 or 1 (Bi-Real Net)."""
    inside = x.clamp(-1, 1)
    return inside * (2 - inside.abs())


def decaying_soft_sign(x: Tensor, progress: float) -> Tensor:
    """The integral of the `ede` estimator: k tanh(t x), see decay_shape."""
    steepness, height = decay_shape(progress)
    return height * torch.tanh(steepness * x)


# The function of which each estimator of bam_plugin.nn.sign is the derivative, with the same arguments.
RELAXATIONS: dict[str, Callable[..., Tensor]] = {
    "identity": lambda x: x,
    "clip": F.hardtanh,
    "polynomial": soft_sign,
    "ede": decaying_soft_sign,
}


def relaxed_activation(binarizer: ActivationBinarizer, x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, H, W): what `binarizer` does to x with its sign replaced by the estimator's function."""
    if isinstance(binarizer, (BatchNormSign, XNORSign)):
        value = binarizer.norm(x)
    elif isinstance(binarizer, RSign):
        value = x - binarizer.threshold
    elif isinstance(binarizer, PlainSign):
        value = x
    else:
        raise StageError(
            f"train.stages: {type(binarizer).__name__} has no full-precision counterpart; use a network with bn_sign, "
            "sign, rsign or xnor activations"
        )
    if binarizer.estimator in PROGRESSIVE:
        return RELAXATIONS[binarizer.estimator](value, binarizer.progress)
    return RELAXATIONS[binarizer.estimator](value)


@torch.no_grad()
def hand_over(group: Sequence[BinaryConv2d]) -> None:
    """Turn the filters W_1 .. W_n of an accumulation group, in its order, into latents whose sums have their signs.

    V_1 = W_1 - E(W_1) and V_i = (W_i - E(W_i)) - (W_(i-1) - E(W_(i-1))), E being the mean per output filter. So eq. 3
    with factors of 1 gives Sign(W_i - E(W_i)), the binary weight that a filter has without accumulation. Where there is
    an output scale it makes up for what that changes in E|W|. Learned factors of the accumulation take no part in the
    stages and count as 1.
    """
    filters = [conv.weight - conv.weight.mean(dim=(1, 2, 3), keepdim=True) for conv in group]
    before = torch.zeros_like(filters[0])
    for conv, own in zip(group, filters, strict=True):
        latent = own - before
        conv.weight.copy_(latent)
        if (scale := conv.output_scale) is not None:
            wanted, found = mean_magnitude(own), mean_magnitude(latent)
            ratio = wanted / found if scale.numel() > 1 else wanted.mean() / found.mean()
            scale.copy_(torch.where(ratio.isfinite(), scale * ratio, scale))
        before = own


class StagedTraining:
    """Switches the binary convolutions of `networks` to what the stage of an iteration computes.

    Args:
        lengths: stage -> its number of iterations, in the order of STAGES.
        networks: the trained network and, where there is one, its average.
    """

    def __init__(self, *, lengths: Mapping[str, int], networks: Sequence[nn.Module]) -> None:
        unknown = [name for name in lengths if name not in STAGES]
        if unknown:
            raise StageError(f"train.stages knows {', '.join(STAGES)}, found {unknown[0]!r}")
        if any(isinstance(length, bool) or not isinstance(length, int) or length < 0 for length in lengths.values()):
            raise StageError(f"train.stages takes numbers of iterations, found {dict(lengths)}")
        self._lengths = {name: lengths[name] for name in STAGES if lengths.get(name)}
        self._convs = [conv for net in networks for conv in net.modules() if isinstance(conv, BinaryConv2d)]
        if not self._convs:
            raise StageError("train.stages: the network has no BinaryConv2d")
        if "float" in self._lengths:
            for conv in self._convs:
                relaxed_activation(conv.binarize_activation.eval(), conv.weight.new_zeros(1, conv.in_channels, 1, 1))
                conv.binarize_activation.train(conv.training)
        self._networks = len(networks)
        # Convolution -> latents of the earlier ones of its accumulation group, as the trained network hands them over.
        self._previous: dict[BinaryConv2d, tuple[Tensor, ...]] = {}
        # An instance's own forward (see autocast.prepare) comes back at the end.
        self._own_forwards = [conv.__dict__.get("forward") for conv in self._convs]
        self.stage: str | None = None

    def at(self, iteration: int) -> str:
        """The stage of `iteration` (from 1): a key of STAGES or `binary`."""
        for name, length in self._lengths.items():
            if iteration <= length:
                return name
            iteration -= length
        return "binary"

    def enter(self, iteration: int) -> bool:
        """Switch to the stage of `iteration`; True when it is another one than before."""
        stage = self.at(iteration)
        if stage == self.stage:
            return False
        for conv, own in zip(self._convs, self._own_forwards, strict=True):
            if stage != "binary":
                conv.forward = _staged_forward(conv, stage, self._previous)  # type: ignore[method-assign]
            elif own is not None:
                conv.forward = own
            else:
                conv.__dict__.pop("forward", None)
        self.stage = stage
        return True

    def leave(self, iteration: int) -> bool:
        """After the step of `iteration`: where it was the last one of the stages, hand over and go on in binary.

        So a checkpoint that is written after it holds what the binary training starts from. True where that was done.
        """
        if self.at(iteration) == "binary" or self.at(iteration + 1) != "binary":
            return False
        for group in self._groups():
            hand_over(group)
        return self.enter(iteration + 1)

    def _groups(self) -> list[list[BinaryConv2d]]:
        """The accumulation groups of more than one convolution, of all networks; the trained one has shown them."""
        size = len(self._convs) // self._networks
        places = {id(conv.weight): place for place, conv in enumerate(self._convs[:size])}
        groups: dict[int, list[int]] = {}  # by the place of the first one
        for place, conv in enumerate(self._convs[:size]):
            if previous := self._previous.get(conv):
                earlier = [places[id(weight)] for weight in previous]
                groups[earlier[0]] = [*earlier, place]  # the last one of a group knows it all
        return [
            [self._convs[offset + place] for place in group]
            for group in groups.values()
            for offset in range(0, len(self._convs), size)
        ]


def _staged_forward(
    conv: BinaryConv2d, stage: str, groups: dict[BinaryConv2d, tuple[Tensor, ...]]
) -> Callable[..., Tensor]:
    """What `conv` computes in `stage`; it notes in `groups` which latents it would accumulate, if it does."""
    accumulates = isinstance(conv.binarize_weight, BAMWeight) and not conv.binarize_weight.solved

    def forward(x: Tensor, previous: Sequence[Tensor] = ()) -> Tensor:
        if accumulates and previous:
            groups[conv] = tuple(previous)
        if stage == "float":
            activation, magnitude = relaxed_activation(conv.binarize_activation, x), None
        else:
            activation, magnitude = conv.binarize_activation.split(x)
        weight: Any = conv.weight
        if conv.output_scale is not None:
            weight = weight * conv.output_scale.view(-1, 1, 1, 1)
        out = F.conv2d(activation, weight, stride=conv.stride, padding=conv.padding)
        if magnitude is None:
            return out
        window = torch.full_like(weight[:1, :1], 1 / conv.kernel_size**2)
        return out * F.conv2d(magnitude, window, stride=conv.stride, padding=conv.padding)

    return forward
