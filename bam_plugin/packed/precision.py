"""Precisions of the float layers: all of them, those that a packed file offers, and their cost.

The weights in a file are always float32. An offer adds the range of each input channel of a convolution on calibration
pictures, and the cost of the precision on benchmarks, which must be less than MAX_COST. Offers stand in the file's
facts under "precisions" (docs/packed_format.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bam_plugin.packed.errors import EngineError, InvalidPrecisionError
from bam_plugin.packed.graph import Graph

FLOAT = "fp32"
FIELD = "precisions"  # of the file's facts
MAX_COST = 0.02  # dB of mean PSNR: a precision that costs as much on a benchmark is not offered
MIN_CHANNELS = 8  # convolutions of fewer channels stay in float32: they see the picture and cost little
LARGEST_RANGE, SMALLEST_RANGE = 1e20, 1e-20


@dataclass(frozen=True)
class Integers:
    """Limits of a precision: quantised activations lie in -activation .. activation, weights in -weight .. weight.

    No sum of products of one filter may exceed 32 bits. So the weights of a large filter use less of their range.
    `room`: ranges of activations over the largest value in calibration.
    """

    name: str
    activation: int
    weight: int
    room: float


# Of 8 bits none is to spare: on a trained BSRN x4 a quarter of room cost 0.002 dB more than none, and half the range,
# which cuts the strongest edges, 0.02 dB. Of 13 bits one is.
INTEGERS = {kind.name: kind for kind in (Integers("int8", 127, 127, 1.125), Integers("int16", 4095, 32767, 2.0))}
PRECISIONS = (FLOAT, *INTEGERS)


@dataclass(frozen=True)
class Offer:
    """The facts of a file about one precision.

    `ranges`: convolution -> largest magnitude of each input channel; values beyond are cut. `cost`: benchmark -> loss
    of mean PSNR in dB against fp32 (negative: a gain). `calibration`: free facts about the pictures.
    """

    kind: Integers
    ranges: Mapping[str, tuple[float, ...]]
    cost: Mapping[str, float]
    calibration: Mapping[str, object]

    def facts(self) -> dict[str, object]:
        """The offer as it stands in the file."""
        ranges = {name: list(values) for name, values in self.ranges.items()}
        return {"ranges": ranges, "cost_db": dict(self.cost), "calibration": dict(self.calibration)}


def check_precision(name: str) -> str:
    """Return `name` if it is a precision. Else raise EngineError, which lists them."""
    if name not in PRECISIONS:
        raise EngineError(f"precision {name!r} is not known; choose one of {list(PRECISIONS)}")
    return name


def reducible_convs(graph: Graph) -> dict[str, int]:
    """Convolutions that may run on integers: name -> input channels.

    These are the float convolutions of one group, of stride 1 and of enough channels, without a `threshold` behind
    them. A flipped sign costs far more than a rounded value.
    """
    decides: set[str] = set()  # values that a threshold depends on
    for node in reversed(graph.nodes):
        if node.op == "threshold" or node.name in decides:
            decides.update(node.inputs)
    return {
        node.name: graph.types[node.inputs[0]].channels
        for node in graph.nodes
        if node.op == "conv2d"
        and not node.attrs  # neither groups nor a stride
        and node.name not in decides
        and graph.types[node.inputs[0]].channels >= MIN_CHANNELS
    }


def read_offers(graph: Graph, facts: Mapping[str, object]) -> dict[str, Offer]:
    """The offers among a file's facts, fastest first.

    Raises InvalidPrecisionError, which names the fault of an offer.
    """
    section = facts.get(FIELD, {})
    if not isinstance(section, Mapping) or not set(section) <= set(INTEGERS):
        raise InvalidPrecisionError(f"{FIELD} must map names among {sorted(INTEGERS)} to offers, found {section!r}")
    convs = reducible_convs(graph)
    return {name: _read_offer(kind, section[name], convs) for name, kind in INTEGERS.items() if name in section}


def _read_offer(kind: Integers, entry: object, convs: Mapping[str, int]) -> Offer:
    if not isinstance(entry, Mapping) or set(entry) != {"ranges", "cost_db", "calibration"}:
        raise InvalidPrecisionError(f"{kind.name} must have exactly the fields ranges, cost_db and calibration")
    ranges, cost, calibration = entry["ranges"], entry["cost_db"], entry["calibration"]
    if not isinstance(ranges, Mapping) or not ranges or not set(ranges) <= set(convs):
        raise InvalidPrecisionError(f"the ranges of {kind.name} must be for convolutions among {sorted(convs)}")
    for name, values in ranges.items():
        if not isinstance(values, list | tuple) or len(values) != convs[name] or not all(map(_is_range, values)):
            raise InvalidPrecisionError(
                f"the ranges of {kind.name} for {name!r} must be {convs[name]} numbers between {SMALLEST_RANGE:g} and "
                f"{LARGEST_RANGE:g}"
            )
    if not isinstance(cost, Mapping) or not cost or not all(_is_cost(value) for value in cost.values()):
        raise InvalidPrecisionError(f"cost_db of {kind.name} must give each benchmark a loss below {MAX_COST} dB")
    if not isinstance(calibration, Mapping):
        raise InvalidPrecisionError(f"the calibration of {kind.name} must be an object")
    made = {name: tuple(map(float, values)) for name, values in ranges.items()}
    return Offer(kind, made, {name: float(value) for name, value in cost.items()}, dict(calibration))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_range(value: object) -> bool:
    return _is_number(value) and SMALLEST_RANGE <= value <= LARGEST_RANGE  # type: ignore[operator]


def _is_cost(value: object) -> bool:
    return _is_number(value) and -1000 < value < MAX_COST  # type: ignore[operator]


def quantise_weights(
    weight: np.ndarray, ranges: tuple[float, ...], kind: Integers
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integer weights int16 (O, I, k, k), float32 output scale (O,) and float32 inverse activation scale (I,).

    An input x of channel i is rounded(x * inverse[i]); the weights take the activation scales in, so the float result
    is scale[o] times the integer sum. Each filter's scale is the smallest that keeps its weights and its sums of
    products within their limits. The sums behind it are correctly rounded: equal on every machine. Raises EngineError
    if the filters are too large, or not finite.
    """
    steps = np.asarray(ranges, dtype=np.float64) / kind.activation
    scaled = weight.astype(np.float64) * steps[:, None, None]
    flat = scaled.reshape(len(scaled), -1)
    taps = flat.shape[1]
    # Rounding moves each weight by at most a half.
    room = (2**31 - 1) // kind.activation - taps / 2 - 1
    if room < taps:
        raise EngineError(f"a convolution of {taps} products is too large for {kind.name}")
    total = np.array([math.fsum(np.abs(filter)) for filter in flat])
    scale = np.maximum(np.abs(flat).max(axis=1) / kind.weight, total / room)
    if not scale.max() < np.finfo(np.float32).max:  # NaN fails, too
        raise EngineError(f"a convolution has weights that are too large for {kind.name}, or no numbers")
    scale = np.where(scale > np.finfo(np.float32).tiny, scale, 1).astype(np.float32)
    integers = np.rint(scaled / scale.astype(np.float64)[:, None, None, None]).clip(-kind.weight, kind.weight)
    return integers.astype(np.int16), scale, (1 / steps).astype(np.float32)
