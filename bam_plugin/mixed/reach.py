"""Measure how much of the picture a pixel of a torch network needs, and which sizes the network takes, for any
architecture.

Reach: one input pixel becomes NaN. Every arithmetic operation hands a NaN on, so the NaNs of the output are the pixels
that depend on it. The signs of binary convolutions would swallow it, so they run in a mode that hands it on.
Comparisons in the network's own code do swallow it, so a radius is tried out before it is believed. Narrow strips, one
along each axis, are enough and cheap. A network has no finite radius if its NaNs fill the strip (pooling or attention
over the picture). It has none either if neighbouring pixels spread differently (windows, strides), because a tile would
lie on another grid.

Sizes: heights and widths are tried out.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bam_plugin.nn.binary_conv import set_mode
from bam_plugin.packed.errors import ConversionError

STRIPS = (64, 256, 1024)
"""Lengths of the strips. A network that fills the last one has no finite radius."""

MULTIPLES = (1, 2, 3, 4, 6, 8, 16, 32, 64)
_LARGEST_LEAST = 64
_CORE = 32
_EDGES = (64, 96)  # between them they are multiples of all


@dataclass(frozen=True)
class Reach:
    """`radius`: input pixels around a pixel that decide its output. If it is None, `unbounded` says why."""

    radius: int | None
    unbounded: str = ""


@dataclass(frozen=True)
class Sizes:
    """Heights and widths that a network takes: multiples of `multiple` from `least` on.

    `scale`: output height over input height. `channels`: channels of the output.
    """

    multiple: int
    least: int
    scale: int
    channels: int

    def fit(self, length: int) -> int:
        """The smallest length that the network takes and that holds `length`."""
        return max(self.least, -(-length // self.multiple) * self.multiple)


def run_fitted(network: nn.Module, x: Tensor, sizes: Sizes) -> Tensor:
    """Run `network` on x (N, C, H, W) of any size.

    The last row and column are repeated as far as needed, and cut off.
    """
    height, width = x.shape[2:]
    pads = (0, sizes.fit(width) - width, 0, sizes.fit(height) - height)
    if any(pads):
        x = F.pad(x, pads, mode="replicate")
    return network(x)[:, :, : height * sizes.scale, : width * sizes.scale]


@torch.no_grad()
def find_sizes(network: nn.Module, num_in_ch: int) -> Sizes:
    """Try out which sizes `network` (in evaluation mode) takes.

    Raises ConversionError if it takes none of the usual ones.
    """
    edge, shape, fault = 0, None, ""
    for edge in _EDGES:
        shape, fault = _try(network, num_in_ch, edge, edge)
        if shape is not None:
            break
    if shape is None:
        raise ConversionError(f"{type(network).__name__} does not run on pictures of {_EDGES} pixels an edge ({fault})")
    ratio = shape[2] / edge if len(shape) == 4 else 0
    if ratio < 1 or ratio != int(ratio) or shape[3] != shape[2]:
        raise ConversionError(
            f"{type(network).__name__} makes {tuple(shape)} of a picture of {edge}x{edge} pixels; an output "
            "enlarged by a whole number was expected"
        )

    def works(height: int, width: int) -> bool:
        made, _ = _try(network, num_in_ch, height, width)
        return made is not None and tuple(made[2:]) == (height * ratio, width * ratio)

    # The quotients are odd, so that a multiple of 2 m is not taken for one of m.
    multiple = next((m for m in MULTIPLES if works((32 // m | 1) * m, (40 // m | 1) * m)), None)
    if multiple is None:
        raise ConversionError(f"{type(network).__name__} takes no multiple of {MULTIPLES} as height and width")
    least = multiple
    while least <= _LARGEST_LEAST:
        # If one size works, larger ones do, too: a padding by reflection only needs a least size.
        failed = [n for n in range(2 * least, least - 1, -multiple) if not works(n, n)]
        if not failed:
            return Sizes(multiple=multiple, least=least, scale=int(ratio), channels=shape[1])
        least = failed[0] + multiple
    raise ConversionError(f"{type(network).__name__} takes no pictures of about {_LARGEST_LEAST} pixels")


def _try(network: nn.Module, num_in_ch: int, height: int, width: int) -> tuple[torch.Size | None, str]:
    """The shape of the output for an input of that size, or None and the error of the network."""
    try:
        return network(torch.zeros(1, num_in_ch, height, width)).shape, ""
    except Exception as error:  # a foreign network may raise anything at a size that does not suit it
        return None, f"{type(error).__name__}: {error}"


@dataclass
class _Call:
    """A finished call of a module: where its operands and its result have NaNs, along the strip."""

    name: str
    inputs: list[list[bool]]
    output: list[bool] | None


@dataclass
class _Probe:
    """One run with a NaN at `position` of a strip of `length` pixels."""

    position: int
    length: int
    calls: list[_Call] = field(default_factory=list)
    result: list[bool] = field(default_factory=list)

    def span(self, marks: list[bool]) -> tuple[int, int] | None:
        """First and last NaN, counted from where the pixel lies on a map of this length; None if it has none or if
        the pixel's place is no whole number there.
        """
        found = [index for index, mark in enumerate(marks) if mark]
        at, rest = divmod(self.position * len(marks), self.length)
        return (found[0] - at, found[-1] - at) if found and not rest else None


def _local(marks: list[bool]) -> bool:
    """Whether NaNs keep away from both ends of the map."""
    return not (marks[0] or marks[-1])


def _narrow(marks: list[bool]) -> bool:
    """Whether NaNs take less than half of the map."""
    return 2 * sum(marks) < len(marks)


@torch.no_grad()
def find_reach(network: nn.Module, sizes: Sizes, num_in_ch: int) -> Reach:
    """Measure the receptive radius of `network`, which has `BinaryConv2d`s and takes `sizes`.

    A network that does not run on strips has no known radius. Raises ConversionError if its values are not finite.
    """
    try:
        return _measure(network, sizes, num_in_ch)
    except ConversionError:
        raise
    except Exception as error:  # a foreign network may raise anything at a shape that does not suit it
        return Reach(None, f"its reach could not be measured ({type(error).__name__}: {error})")


def _measure(network: nn.Module, sizes: Sizes, num_in_ch: int) -> Reach:
    twin = _open_twin(network)
    radius = 0
    for vertical in (False, True):
        for length in STRIPS:
            pair = [_run_probe(twin, sizes, num_in_ch, length, at, vertical) for at in (length // 2, length // 2 + 1)]
            if all(_local(probe.result) for probe in pair) or length == STRIPS[-1]:
                break
        if not all(any(probe.result) for probe in pair):
            return Reach(None, "the network's own code hides what a pixel depends on (it compares values)")
        reason = _reason(network, pair)
        if reason:
            return Reach(None, reason)
        for probe in pair:
            marked = [index // sizes.scale for index, mark in enumerate(probe.result) if mark]
            radius = max([radius, *(abs(index - probe.position) for index in marked)])
    if not _suffices(network, sizes, num_in_ch, radius):
        return Reach(None, f"pixels depend on more than the {radius} around them that can be traced")
    return Reach(radius)


def _suffices(network: nn.Module, sizes: Sizes, num_in_ch: int, radius: int) -> bool:
    """Whether the end of a strip stays the same, up to rounding, without the pixels beyond the radius."""
    network = copy.deepcopy(network).float().eval()
    core, thickness = sizes.fit(_CORE), sizes.fit(1)
    part = sizes.fit(core + radius)
    generator = torch.Generator().manual_seed(0)
    for vertical in (False, True):
        x = torch.rand(1, num_in_ch, thickness, sizes.fit(2 * part), generator=generator)
        ends = []
        for strip in (x, x[..., :part]):
            result = network(strip.transpose(2, 3) if vertical else strip)
            ends.append((result.transpose(2, 3) if vertical else result)[..., : core * sizes.scale])
        if ((ends[0] - ends[1]).abs() > 1 / 255).float().mean() > 0.01:
            return False
    return True


def _open_twin(network: nn.Module) -> nn.Module:
    twin = copy.deepcopy(network).float().eval()
    set_mode(twin, "reach")
    return twin


def _run_probe(twin: nn.Module, sizes: Sizes, num_in_ch: int, length: int, position: int, vertical: bool) -> _Probe:
    probe = _Probe(position=position, length=sizes.fit(length))
    thickness = sizes.fit(1)
    size = (probe.length, thickness) if vertical else (thickness, probe.length)
    x = torch.zeros(1, num_in_ch, *size)

    def marks(value: object) -> list[bool] | None:
        """NaNs of a map (N, C, H, W), or of tokens (N, H * W, C), along the strip."""
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.numel() == 0:
            return None
        if value.ndim == 3 and value.shape[1] == size[0] * size[1]:
            value = value.transpose(1, 2).unflatten(2, size)
        if value.ndim != 4:
            return None
        return value.isnan().any(dim=(0, 1, 3) if vertical else (0, 1, 2)).tolist()  # type: ignore[arg-type]

    def note(module: nn.Module, args: tuple, output: object, name: str) -> None:
        inputs = [found for found in map(marks, args) if found is not None]
        probe.calls.append(_Call(name, inputs, marks(output)))

    if not torch.isfinite(twin(x)).all():
        raise ConversionError("a black picture gives values that are not finite; the checkpoint's run has diverged")
    x[(..., position, slice(None)) if vertical else (..., position)] = torch.nan
    handles = [
        module.register_forward_hook(lambda module, args, output, name=name: note(module, args, output, name))
        for name, module in twin.named_modules()
    ]
    with torch.backends.nnpack.flags(enabled=False):  # it transforms blocks of pixels, over which a NaN would spread
        try:
            result = twin(x)
        finally:
            for handle in handles:
                handle.remove()
    probe.result = marks(result) or []
    return probe


def _reason(network: nn.Module, pair: list[_Probe]) -> str:
    """The reason for no finite radius: the module behind which NaNs fill the strip or spread unevenly."""
    first, second = pair
    everywhere = not all(_local(probe.result) for probe in pair)
    uneven = _uneven(first, first.result, second, second.result)
    if not everywhere and not uneven:
        return ""
    for one, other in zip(first.calls, second.calls, strict=False):
        if one.output is None or other.output is None:
            continue
        if everywhere and all(one.output) and all(map(_narrow, one.inputs)):
            return f"{_named(network, one.name)} sees the whole picture"
        if not all(one.output) and not _narrow(one.output):
            break  # it has grown step by step
        if _uneven(first, one.output, second, other.output) and not any(
            _uneven(first, a, second, b) for a, b in zip(one.inputs, other.inputs, strict=False)
        ):
            return f"{_named(network, one.name)} does not treat all pixels alike (it works in windows or strides)"
    if everywhere:
        return f"an output pixel depends on more than {first.length // 2} input pixels to each side"
    return "not all pixels are treated alike (windows or strides)"


def _uneven(first: _Probe, one: list[bool], second: _Probe, other: list[bool]) -> bool:
    """Whether two neighbouring pixels reach differently far on a map, as far as the strip tells."""
    spans = first.span(one), second.span(other)
    return None not in spans and spans[0] != spans[1] and _local(one) and _local(other)


def _named(network: nn.Module, name: str) -> str:
    return f"{name or 'the network'} ({type(network.get_submodule(name)).__name__})"
