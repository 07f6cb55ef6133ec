"""The activation binarizers: from a float map to the alphabet of a binary convolution.

An activation binarizer is a module built with `num_feat` (channels). Its three views:
- `forward(x)` -> the effective activation (N, C, H, W) = sum over the bases of factor * map, with the gradient stated.
- `decompose(x)` -> [(map (N, C, H, W) in the alphabet, factor), ...], one pair per base; factor is a scalar tensor, or
  None for 1. What evaluation computes with. In evaluation each map is, per channel, a step function of x: it rises (or,
  where a normalization has a negative slope, falls) once, at one float. So a packed file needs one threshold and one
  direction per channel and base, and bisection over the floats with `decompose` finds them exactly.
- `split(x)` -> (effective activation, magnitude (N, 1, H, W) or None): a magnitude is averaged by the convolution over
  its window and multiplies its output (where `has_magnitude` is true: xnor).
`alphabet` is `-1,+1`, `0,1` or None (full precision, not binary); a tap outside the image is 0 in all of them. g stands
for the gradient of the loss with respect to the effective activation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bam_plugin.nn.sign import ESTIMATORS, PROGRESSIVE, estimated_sign, sign
from bam_plugin.nn.weights import straight_through, windowed


def set_progress(network: nn.Module, progress: float) -> int:
    """Tell all progressive estimators of `network` how far its training is (0..1); returns how many there are.

    BinarySRModel does so before each iteration. They begin at 0. Nothing but gradients depends on it.
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress must lie in 0..1, found {progress}")
    count = 0
    for module in network.modules():
        if isinstance(module, EstimatedSign) and module.estimator in PROGRESSIVE:
            module.progress = progress
            count += 1
    return count


class ActivationBinarizer(nn.Module):
    """Base of the activation binarizers with one base and no magnitude."""

    alphabet: str | None = "-1,+1"
    bases = 1
    has_magnitude = False
    has_threshold = False
    """Whether it learns a threshold per channel, whose start the keyword `shift` moves (see BinaryChain's planes)."""

    def decompose(self, x: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """[(map, factor), ...], see the module's text."""
        return [(self(x), None)]

    def split(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(effective activation, magnitude), see the module's text."""
        return self(x), None


class EstimatedSign(ActivationBinarizer):
    """Base of the binarizers to -1 and +1 whose gradient is that of `estimator`, a name in ESTIMATORS."""

    def __init__(self, *, estimator: str) -> None:
        super().__init__()
        if estimator not in ESTIMATORS:
            raise ValueError(f"estimator must be one of {tuple(ESTIMATORS)}, found {estimator!r}")
        self.estimator = estimator
        self.progress = 0.0

    def estimate(self, x: Tensor) -> Tensor:
        """Sign(x) of the shape of `x` with the estimator's gradient."""
        return estimated_sign(x, self.estimator, self.progress)

    def extra_repr(self) -> str:
        """The options that `print` shows."""
        return f"estimator={self.estimator}"


class BatchNormSign(EstimatedSign):
    """A^B = Sign(BN(A)) with an affine batch normalization over (N, H, W)   (eq. 9 after the accumulation; BNN).

    The learned shift and slope of the normalization are per-channel thresholds of the sign; `shift` is
    the shift's start. Gradient of the sign by `estimator`, a name in `bam_plugin.nn.sign.ESTIMATORS`.
    Tie: Sign(0) = +1.
    """

    has_threshold = True

    def __init__(self, *, num_feat: int, estimator: str = "clip", shift: float = 0.0) -> None:
        super().__init__(estimator=estimator)
        self.norm = nn.BatchNorm2d(num_feat)
        nn.init.constant_(self.norm.bias, shift)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W) in {-1, +1}."""
        return self.estimate(self.norm(x))


class XNORSign(EstimatedSign):
    """A^B = Sign(I) with I = BN(A), and the magnitude E|I| over the channels   (Rastegari et al., XNOR-Net, ECCV 2016).

    The convolution averages the magnitude over its window (K of the paper) and multiplies its output by it. Gradient of
    the sign by `estimator`, none through the magnitude. Tie: Sign(0) = +1.
    """

    has_magnitude = True

    def __init__(self, *, num_feat: int, estimator: str = "clip") -> None:
        super().__init__(estimator=estimator)
        self.norm = nn.BatchNorm2d(num_feat)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W) in {-1, +1}."""
        return self.split(x)[0]

    def split(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(signs, E|I| (N, 1, H, W))."""
        normalized = self.norm(x)
        return self.estimate(normalized), normalized.detach().abs().mean(dim=1, keepdim=True)


class PlainSign(EstimatedSign):
    """A^B = Sign(A), no normalization and no parameter   (Bi-Real Net, Liu et al., ECCV 2018; E2FIF).

    Gradient of the sign by `estimator`. Tie: Sign(0) = +1.
    """

    def __init__(self, *, num_feat: int, estimator: str = "polynomial") -> None:
        super().__init__(estimator=estimator)
        self.num_feat = num_feat

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W) in {-1, +1}."""
        return self.estimate(x)


class RSign(EstimatedSign):
    """A^B = Sign(A - t) with one learned threshold t per channel, -`shift` at the start   (ReActNet, ECCV 2020; BBCU).

    Gradient of the sign by `estimator`; dL/dt is the negative sum over the channel. Tie: Sign(0) = +1.
    """

    has_threshold = True

    def __init__(self, *, num_feat: int, estimator: str = "polynomial", shift: float = 0.0) -> None:
        super().__init__(estimator=estimator)
        self.threshold = nn.Parameter(torch.full((num_feat, 1, 1), 0.0 - shift))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W) in {-1, +1}."""
        return self.estimate(x - self.threshold)


class DoReFaActivation(ActivationBinarizer):
    """A^B = 1 if BN(A) >= 0.5 else 0: one bit in {0, 1}   (Zhou et al., DoReFa-Net with A1, arXiv 1606.06160).

    Gradient: g where 0 <= BN(A) <= 1, else 0. Tie: 0.5 gives 1. A padded 0 is a value of this
    alphabet. The normalization starts at the shift 0.5, so that half of the bits are set.
    """

    alphabet = "0,1"

    def __init__(self, *, num_feat: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(num_feat)
        nn.init.constant_(self.norm.bias, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W) in {0, 1}."""
        normalized = self.norm(x)
        return straight_through((normalized >= 0.5).to(x.dtype), windowed(normalized, 0, 1))


class ABCActivation(ActivationBinarizer):
    """A^B = b_1 A_1 + ... + b_N A_N, A_n = Sign(R + v_n - 0.5), R = BN(A)   (Lin et al., ABC-Net, NeurIPS 2017).

    Factors b (1 at the start) and shifts v are trained, one per base and layer; the shifts start at
    1.5 (n - (N + 1) / 2): 0 for one base; -1.5, 0, 1.5 for three.
    Gradient: to R and v_n, b_n g where 0 <= R + v_n <= 1, else 0; to b_n, sum(g * A_n). Tie: Sign(0) = +1.
    """

    def __init__(self, *, num_feat: int, bases: int = 1) -> None:
        super().__init__()
        if bases < 1:
            raise ValueError(f"bases must be at least 1, found {bases}")
        self.bases = bases
        self.norm = nn.BatchNorm2d(num_feat)
        self.shift = nn.Parameter(1.5 * (torch.arange(bases) - (bases - 1) / 2))
        self.factor = nn.Parameter(torch.ones(bases))

    def decompose(self, x: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """One pair per base; the maps carry the gradient above."""
        normalized = self.norm(x)
        pairs: list[tuple[Tensor, Tensor | None]] = []
        for index in range(self.bases):
            shifted = normalized + self.shift[index]
            pairs.append((straight_through(sign(shifted - 0.5), windowed(shifted, 0, 1)), self.factor[index]))
        return pairs

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W), the sum of factor * map over the bases."""
        total = None
        for signs, factor in self.decompose(x):
            term = signs if factor is None else signs * factor
            total = term if total is None else total + term
        assert total is not None
        return total


class FloatActivation(ActivationBinarizer):
    """A^B = A: activations stay full precision, only the weights are binary (Table 5 of the paper); gradient g."""

    alphabet = None

    def __init__(self, *, num_feat: int) -> None:
        super().__init__()
        self.num_feat = num_feat

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), unchanged."""
        return x
