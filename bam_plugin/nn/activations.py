"""The activation binarizers: from a float map to the alphabet of a binary convolution.

An activation binarizer is one class. Training, stages, profile, packed files and the option check ask its object for
everything that they need to know of it. It works in two steps:

    value(x)      the float map in front of the sign, (N, C, H, W): normalized, shifted, or x itself
    maps(value)   [(map, factor), ...], one pair per base: the map (N, C, H, W) in the alphabet, with the gradient
                  stated; the factor a scalar tensor, or None for 1

Training convolves with their sum, `forward(x)` = sum of factor * map; evaluation and packed files take each map alone.

A class must keep two promises, on which `steps` relies. In evaluation `value` is, per channel, x times a scale plus a
shift (`affine`). And each map is a step function of the value, low first and high from some float on. So a packed file
needs one threshold and one direction per channel and base, and finds them by bisection with `maps` itself.

`alphabet` is `-1,+1`, `0,1` or None (the activations stay as they are, and only the weights are binary). A tap outside
the image is 0 in all of them. A binarizer with a magnitude (`has_magnitude`) also gives the mean of |value| over the
channels; the convolution averages it over its window and multiplies its output by it. g stands for the gradient of the
loss with respect to the effective activation.

A new binarizer is a class with a `name`, which enters it in the table: `class RSign(EstimatedSign, name="rsign")`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bam_plugin.nn.sign import ESTIMATORS, PROGRESSIVE, estimated_sign, relaxed_sign, sign
from bam_plugin.nn.weights import straight_through, windowed

ACTIVATION_BINARIZERS: dict[str, type[ActivationBinarizer]] = {}
"""name -> class; each is entered where it is defined."""


def set_progress(network: nn.Module, progress: float) -> int:
    """Set the progress (0..1) of the training for all progressive estimators of `network`. Returns their number.

    BinarySRModel calls it before each iteration. The progress begins at 0. Only gradients depend on it.
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress must lie in 0..1, found {progress}")
    count = 0
    for module in network.modules():
        if isinstance(module, ActivationBinarizer) and module.progressive:
            module.progress = progress
            count += 1
    return count


def window_filter(kernel_size: int, *, like: Tensor) -> Tensor:
    """The filter (1, 1, k, k) that averages over the window of a convolution, of the dtype and device of `like`."""
    return like.new_full((1, 1, kernel_size, kernel_size), 1 / kernel_size**2)


def window_mean(magnitude: Tensor, *, kernel_size: int, stride: int, padding: int) -> Tensor:
    """(N, 1, H, W) -> (N, 1, H', W'), the mean over the window of a convolution with zeros outside the image."""
    return F.conv2d(magnitude, window_filter(kernel_size, like=magnitude), stride=stride, padding=padding)


def batch_norm_affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The scale and shift (C,) of an evaluated BatchNorm, y = x * scale + shift.

    It is computed in float64 and rounded once to float32, on the CPU. Raises ValueError for a BatchNorm without running
    statistics, because its result depends on the image.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a BatchNorm without running statistics depends on the image")
    mean, variance = norm.running_mean.detach().cpu().double(), norm.running_var.detach().cpu().double()
    scale = (variance + norm.eps).sqrt()
    scale = (torch.ones_like(mean) if norm.weight is None else norm.weight.detach().cpu().double()) / scale
    shift = (torch.zeros_like(mean) if norm.bias is None else norm.bias.detach().cpu().double()) - mean * scale
    return scale.float(), shift.float()


@dataclass(frozen=True)
class Step:
    """One base in evaluation: the map is high where `is_high(x * scale + shift)`, the value in float32.

    `scale` and `shift` are (C,). `is_high` maps values (N, C, H, W) to bool and is monotone: False, then True.
    """

    scale: Tensor
    shift: Tensor
    is_high: Callable[[Tensor], Tensor]
    factor: Tensor | None
    """The factor of the map, a scalar; None for 1."""


class ActivationBinarizer(nn.Module):
    """Base of the activation binarizers, see the module's text; a class of its own defines `maps` at least.

    `num_feat` is the number of channels C of the map. `norm` is the batch normalization that `value` begins with, or
    None.
    """

    alphabet: str | None = "-1,+1"
    bases = 1
    has_magnitude = False
    normalizes = False
    """Whether it begins with a batch normalization. Behind a rectifier the others see no negative value, and where
    their threshold starts at 0 they give +1 everywhere."""
    has_threshold = False
    """Whether it learns a threshold per channel, whose start the keyword `shift` moves (see BinaryChain's planes)."""
    fusable = False
    """Whether it is Sign(norm(x)) with an estimator's gradient and no more, which the fast path of training computes.
    Subclasses do not inherit it."""
    progressive = False
    """Whether its gradient follows `progress`, see set_progress."""
    progress = 0.0

    def __init_subclass__(cls, *, name: str | None = None) -> None:
        super().__init_subclass__()
        cls.fusable = cls.__dict__.get("fusable", False)
        if name is not None:
            if name in ACTIVATION_BINARIZERS:
                raise ValueError(f"there is an activation binarizer {name!r} already: {ACTIVATION_BINARIZERS[name]}")
            ACTIVATION_BINARIZERS[name] = cls

    def __init__(self, *, num_feat: int) -> None:
        super().__init__()
        self.num_feat = num_feat
        self.norm = nn.BatchNorm2d(num_feat) if self.normalizes else None

    @property
    def low(self) -> float:
        """The value of a low bit; a high one is 1."""
        return 0.0 if self.alphabet == "0,1" else -1.0

    @classmethod
    def is_relaxable(cls) -> bool:
        """Whether it has a full-precision counterpart, `relaxed`."""
        return cls.relaxed is not ActivationBinarizer.relaxed

    def value(self, x: Tensor) -> Tensor:
        """The float map in front of the sign, (N, C, H, W) -> (N, C, H, W)."""
        return x if self.norm is None else self.norm(x)

    def affine(self) -> tuple[Tensor, Tensor]:
        """The float32 scale and shift (C,) by which `value` follows from x in evaluation. A class with its own `value`
        has its own `affine`.
        """
        if self.norm is None:
            return torch.ones(self.num_feat), torch.zeros(self.num_feat)
        return batch_norm_affine(self.norm)

    def maps(self, value: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """[(map, factor), ...], see the module's text."""
        raise NotImplementedError

    def magnitude(self, value: Tensor) -> Tensor:
        """E|value| over the channels, (N, 1, H, W), without gradient: what `has_magnitude` stands for."""
        return value.detach().abs().mean(dim=1, keepdim=True)

    def relaxed(self, value: Tensor) -> Tensor:
        """The continuous function of the value (N, C, H, W) whose derivative is the gradient of its map.

        Raises ValueError if there is none.
        """
        raise ValueError(f"{type(self).__name__} has no full-precision counterpart")

    def steps(self) -> list[Step]:
        """One step function per base, for a packed file. The binarizer must be in evaluation, on the CPU."""
        scale, shift = self.affine()
        with torch.no_grad():
            factors = [factor for _, factor in self.maps(shift.view(1, -1, 1, 1))]
        # A straight-through estimator may subtract a value from itself, and an infinite one would give NaN.
        largest = torch.finfo(torch.float32).max
        return [
            Step(scale, shift, lambda y, base=base: self.maps(y.clamp(-largest, largest))[base][0] > 0, factor)
            for base, factor in enumerate(factors)
        ]

    def forward(self, x: Tensor) -> Tensor:
        """The effective activation (N, C, H, W), the sum of factor * map over the bases."""
        return combine(self.maps(self.value(x)))


def combine(maps: list[tuple[Tensor, Tensor | None]]) -> Tensor:
    """The sum of factor * map, in the order of the bases."""
    terms = [signs if factor is None else signs * factor for signs, factor in maps]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


class EstimatedSign(ActivationBinarizer):
    """Base of the binarizers to -1 and +1: Sign(value), with the gradient of `estimator`, a name in ESTIMATORS.

    Tie: Sign(0) = +1.
    """

    def __init__(self, *, num_feat: int, estimator: str) -> None:
        super().__init__(num_feat=num_feat)
        if estimator not in ESTIMATORS:
            raise ValueError(f"estimator must be one of {tuple(ESTIMATORS)}, found {estimator!r}")
        self.estimator = estimator
        self.progressive = estimator in PROGRESSIVE

    def maps(self, value: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """Sign(value), one base."""
        return [(estimated_sign(value, self.estimator, self.progress), None)]

    def relaxed(self, value: Tensor) -> Tensor:
        """The function whose derivative the estimator is: hardtanh for `clip`, and so on."""
        return relaxed_sign(value, self.estimator, self.progress)

    def extra_repr(self) -> str:
        """The options that `print` shows."""
        return f"estimator={self.estimator}"


class BatchNormSign(EstimatedSign, name="bn_sign"):
    """A^B = Sign(BN(A)) with an affine batch normalization over (N, H, W)   (eq. 9 after the accumulation; BNN).

    The learned shift and slope of the normalization are per-channel thresholds of the sign; `shift` is
    the shift's start. Gradient of the sign by `estimator`, a name in `bam_plugin.nn.sign.ESTIMATORS`.
    Tie: Sign(0) = +1.
    """

    normalizes = True
    fusable = True
    has_threshold = True

    def __init__(self, *, num_feat: int, estimator: str = "clip", shift: float = 0.0) -> None:
        super().__init__(num_feat=num_feat, estimator=estimator)
        assert self.norm is not None
        nn.init.constant_(self.norm.bias, shift)


class PlainSign(EstimatedSign, name="sign"):
    """A^B = Sign(A), no normalization and no parameter   (Bi-Real Net, Liu et al., ECCV 2018; E2FIF).

    Gradient of the sign by `estimator`. Tie: Sign(0) = +1.
    """

    def __init__(self, *, num_feat: int, estimator: str = "polynomial") -> None:
        super().__init__(num_feat=num_feat, estimator=estimator)


class RSign(EstimatedSign, name="rsign"):
    """A^B = Sign(A - t) with one learned threshold t per channel, -`shift` at the start   (ReActNet, ECCV 2020; BBCU).

    Gradient of the sign by `estimator`; dL/dt is the negative sum over the channel. Tie: Sign(0) = +1.
    """

    has_threshold = True

    def __init__(self, *, num_feat: int, estimator: str = "polynomial", shift: float = 0.0) -> None:
        super().__init__(num_feat=num_feat, estimator=estimator)
        self.threshold = nn.Parameter(torch.full((num_feat, 1, 1), 0.0 - shift))

    def value(self, x: Tensor) -> Tensor:
        """X - t."""
        return x - self.threshold

    def affine(self) -> tuple[Tensor, Tensor]:
        """1 and -t."""
        return torch.ones(self.num_feat), -self.threshold.detach().cpu().float().view(-1)


class DoReFaActivation(ActivationBinarizer, name="dorefa"):
    """A^B = 1 if BN(A) >= 0.5 else 0: one bit in {0, 1}   (Zhou et al., DoReFa-Net with A1, arXiv 1606.06160).

    Gradient: g where 0 <= BN(A) <= 1, else 0. Tie: 0.5 gives 1. A padded 0 is a value of this
    alphabet. The normalization starts at the shift 0.5, so that half of the bits are set.
    """

    alphabet = "0,1"
    normalizes = True

    def __init__(self, *, num_feat: int) -> None:
        super().__init__(num_feat=num_feat)
        assert self.norm is not None
        nn.init.constant_(self.norm.bias, 0.5)

    def maps(self, value: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """1 from 0.5 on, one base."""
        return [(straight_through((value >= 0.5).to(value.dtype), windowed(value, 0, 1)), None)]


class ABCActivation(ActivationBinarizer, name="abc"):
    """A^B = b_1 A_1 + ... + b_N A_N, A_n = Sign(R + v_n - 0.5), R = BN(A)   (Lin et al., ABC-Net, NeurIPS 2017).

    Factors b (1 at the start) and shifts v are trained, one per base and layer; the shifts start at
    1.5 (n - (N + 1) / 2): 0 for one base; -1.5, 0, 1.5 for three.
    Gradient: to R and v_n, b_n g where 0 <= R + v_n <= 1, else 0; to b_n, sum(g * A_n). Tie: Sign(0) = +1.
    """

    normalizes = True

    def __init__(self, *, num_feat: int, bases: int = 1) -> None:
        if bases < 1:
            raise ValueError(f"bases must be at least 1, found {bases}")
        super().__init__(num_feat=num_feat)
        self.bases = bases
        self.shift = nn.Parameter(1.5 * (torch.arange(bases) - (bases - 1) / 2))
        self.factor = nn.Parameter(torch.ones(bases))

    def maps(self, value: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """Sign(R + v_n - 0.5) and b_n, one pair per base."""
        pairs: list[tuple[Tensor, Tensor | None]] = []
        for index in range(self.bases):
            shifted = value + self.shift[index]
            pairs.append((straight_through(sign(shifted - 0.5), windowed(shifted, 0, 1)), self.factor[index]))
        return pairs


class XNORSign(EstimatedSign, name="xnor"):
    """A^B = Sign(I) with I = BN(A), and the magnitude E|I| over the channels   (Rastegari et al., XNOR-Net, ECCV 2016).

    The convolution averages the magnitude over its window (K of the paper) and multiplies its output by it. Gradient of
    the sign by `estimator`, none through the magnitude. Tie: Sign(0) = +1.
    """

    normalizes = True
    has_magnitude = True

    def __init__(self, *, num_feat: int, estimator: str = "clip") -> None:
        super().__init__(num_feat=num_feat, estimator=estimator)


class FloatActivation(ActivationBinarizer, name="float"):
    """A^B = A: activations stay full precision, only the weights are binary   (Table 5 of the paper).

    Gradient: g.
    """

    alphabet = None

    def maps(self, value: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """The map itself."""
        return [(value, None)]
