"""BatchNorm followed by Sign is a comparison: the exact float32 threshold of each channel, found by bisection.

The evaluator computes y = fl(fl(x * a) + b) and asks whether y >= 0 (or another step of y). In x this is a monotone
step function of float32, so one float separates its two values. Bisection over the ordered float32 numbers finds it in
32 steps for all channels at once. gamma < 0 reverses the step (`flip`), and gamma = 0 makes a constant.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def _to_float(order: np.ndarray) -> np.ndarray:
    """Inverse of the order-preserving map float32 -> int64 that sends -0.0 to -1 and +0.0 to 0."""
    bits = np.where(order >= 0, order, -order - 1 + 0x80000000)
    return bits.astype(np.uint32).view(np.float32)


def step_thresholds(
    a: np.ndarray, b: np.ndarray, positive: Callable[[np.ndarray], np.ndarray] = lambda y: y >= 0
) -> tuple[np.ndarray, np.ndarray]:
    """Thresholds (C,) float32 and flips (C,) uint8: positive(fl(fl(x * a) + b)) == ((x >= threshold) XOR flip).

    `a` and `b` are float32 (C,), finite; `positive` maps float32 (C,) to bool and is monotone (False, then True) per
    channel. It holds for every float32 x except NaN, and for the infinities if a is not 0.
    """
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("thresholds need a finite scale and shift in every channel")
    flip = a < 0
    infinity = 0x7F800000
    low = np.full(a.shape, -infinity - 1, dtype=np.int64)  # -inf: the step lies at or above it
    high = np.full(a.shape, infinity, dtype=np.int64)  # +inf: already beyond the step
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        while np.any(low < high):
            middle = (low + high) >> 1
            beyond = positive(_to_float(middle) * a + b) ^ flip
            high = np.where(beyond, middle, high)
            low = np.where(beyond, low, np.minimum(middle + 1, high))
    threshold = _to_float(high) + np.float32(0)  # -0.0 and +0.0 compare equal: store +0.0
    constant = a == 0
    threshold = np.where(constant, np.float32(-np.inf), threshold).astype(np.float32)
    flip = np.where(constant, ~positive(b), flip)
    return threshold, flip.astype(np.uint8)
