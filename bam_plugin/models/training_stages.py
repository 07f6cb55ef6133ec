"""Staged training: full precision first, then binary activations, then binary weights too.

    stages: {float: 20000, binary_activations: 20000}     iterations of each stage; all others are binary

The stages are modes of a binary convolution (bam_plugin.nn.binary_conv): in `float` it computes with its latent weights
and with the function whose derivative its estimator is, in `binary_activations` with signs and latent weights.
Parameters and normalizations are the same in all stages, so each stage goes on where the one before ended.

Neither stage accumulates filters. So behind the last one the latent weights of an accumulation group take other values:
those whose accumulated sums have the signs of the single filters (`hand_over`). If the stages take all iterations, this
does not happen; with `float` alone the training is that of the full-precision twin. Only BinarySRModel knows stages,
and only in training. A checkpoint that is tested, converted or profiled is binary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bam_plugin.errors import BamError
from bam_plugin.nn.binary_conv import BinaryConv2d, binary_convs, note_previous, set_mode
from bam_plugin.nn.weights import mean_magnitude

STAGES = ("float", "binary_activations")


class StageError(BamError):
    """The options under train.stages do not fit the network or the training."""


@torch.no_grad()
def hand_over(group: Sequence[BinaryConv2d]) -> None:
    """Turn the filters W_1 .. W_n of an accumulation group, in its order, into latent weights whose sums have their
    signs.

    V_1 = W_1 - E(W_1) and V_i = (W_i - E(W_i)) - (W_(i-1) - E(W_(i-1))), E being the mean per output filter. So eq. 3
    with factors of 1 gives Sign(W_i - E(W_i)), the binary weight of a filter without accumulation. An output scale, if
    there is one, makes up for the change in E|W|. Learned factors of the accumulation take no part in the stages and
    count as 1.
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
    """Switches the binary convolutions of `networks` to the mode of an iteration's stage.

    Args:
        lengths: stage -> its number of iterations, in the order of STAGES.
        networks: the trained network and its average, if there is one.
    """

    def __init__(self, *, lengths: Mapping[str, int], networks: Sequence[nn.Module]) -> None:
        unknown = [name for name in lengths if name not in STAGES]
        if unknown:
            raise StageError(f"train.stages knows {', '.join(STAGES)}, found {unknown[0]!r}")
        if any(isinstance(length, bool) or not isinstance(length, int) or length < 0 for length in lengths.values()):
            raise StageError(f"train.stages takes numbers of iterations, found {dict(lengths)}")
        self._lengths = {name: lengths[name] for name in STAGES if lengths.get(name)}
        self._networks = list(networks)
        self._convs = [list(binary_convs(network).values()) for network in networks]
        if not self._convs[0]:
            raise StageError("train.stages: the network has no BinaryConv2d")
        # Convolution -> latent weights of the earlier ones in its accumulation group, as the trained network passes
        # them.
        self._previous: dict[BinaryConv2d, tuple[Tensor, ...]] = {}
        self._handles: list[RemovableHandle] = []
        self.stage: str | None = None
        if "float" in self._lengths:
            self._set_mode("float")
            self._set_mode("binary")

    def at(self, iteration: int) -> str:
        """The stage of `iteration` (from 1): a key of STAGES or `binary`."""
        for name, length in self._lengths.items():
            if iteration <= length:
                return name
            iteration -= length
        return "binary"

    def enter(self, iteration: int) -> bool:
        """Switch to the stage of `iteration`. True if it differs from the stage before."""
        stage = self.at(iteration)
        if stage == self.stage:
            return False
        self._set_mode(stage)
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if stage != "binary":
            self._handles = [self._watch(conv) for conv in self._convs[0] if conv.binarize_weight.sums_group]
        self.stage = stage
        return True

    def leave(self, iteration: int) -> bool:
        """Call it after the step of `iteration`. If that was the last one of the stages, hand over and go on in binary.

        So a checkpoint after it holds the weights from which the binary training starts. True if it handed over.
        """
        if self.at(iteration) == "binary" or self.at(iteration + 1) != "binary":
            return False
        for group in self._groups():
            hand_over(group)
        return self.enter(iteration + 1)

    def _set_mode(self, mode: str) -> None:
        for network in self._networks:
            try:
                set_mode(network, mode)
            except ValueError as error:
                raise StageError(f"train.stages: {error}") from error

    def _watch(self, conv: BinaryConv2d) -> RemovableHandle:
        def note(previous: tuple[Tensor, ...]) -> None:
            if previous:
                self._previous[conv] = previous

        return note_previous(conv, note)

    def _groups(self) -> list[list[BinaryConv2d]]:
        """The accumulation groups with more than one convolution, of all networks.

        The forward of the trained one shows them.
        """
        places = {id(conv.weight): place for place, conv in enumerate(self._convs[0])}
        groups: dict[int, list[int]] = {}  # by the place of the first one
        for place, conv in enumerate(self._convs[0]):
            if previous := self._previous.get(conv):
                earlier = [places[id(weight)] for weight in previous]
                groups[earlier[0]] = [*earlier, place]  # the last one of a group knows it all
        return [[convs[place] for place in group] for group in groups.values() for convs in self._convs]
