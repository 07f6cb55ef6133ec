"""The weight binarizers: from a latent full-precision weight to signs and scales.

A weight binarizer has two views of the same binary weight, and no state but its own parameters:

- `decompose(latent, previous)` -> [(signs (O, I, kh, kw) in {-1, +1}, scale (O,)), ...], one pair per base and without
  gradient. Evaluation computes with them, and a packed file stores them. The binary weight is sum(scale * signs).
- `forward(latent, previous)` -> the same weight as one tensor (O, I, kh, kw), with the binarizer's gradient.

`previous` are the latent weights of the earlier convolutions of an accumulation group. Only `bam` uses them. No scale
is differentiated. g stands for dL/dW^B.

A new binarizer is a class with a `name`, which enters it in the table: `class BNNWeight(WeightBinarizer, name="bnn")`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bam_plugin.nn.accumulation import accumulate_filters
from bam_plugin.nn.alpha import solve_alpha
from bam_plugin.nn.sign import sign

WEIGHT_BINARIZERS: dict[str, type[WeightBinarizer]] = {}
"""name -> class; each is entered where it is defined."""


def mean_magnitude(weight: Tensor) -> Tensor:
    """E|W| per output filter: (O, I, kh, kw) -> (O,)."""
    return weight.abs().mean(dim=(1, 2, 3))


def straight_through(value: Tensor, carrier: Tensor) -> Tensor:
    """`value` in the forward pass, the gradient of `carrier` in the backward pass (both of one shape)."""
    # carrier - carrier.detach() is exactly zero, so the forward value is not rounded.
    return value.detach() + (carrier - carrier.detach())


def windowed(x: Tensor, low: float, high: float) -> Tensor:
    """A carrier of the gradient [low <= x <= high], both ends included."""
    return torch.where((x >= low) & (x <= high), x, torch.zeros_like(x))


class WeightBinarizer(nn.Module):
    """Base of the weight binarizers: `decompose` and the `carrier` of the gradient make `forward`.

    bases: number of pairs that `decompose` returns. accumulates: whether it uses `previous` (and then takes the
    keyword `group_index`). sums_group: whether its signs are those of a sum over the group, with factors that do not
    depend on the latents. scaled: whether the scale follows the latent weight (False: it is 1).
    """

    bases = 1
    accumulates = False
    sums_group = False
    scaled = True

    def __init_subclass__(cls, *, name: str | None = None) -> None:
        super().__init_subclass__()
        if name is not None:
            if name in WEIGHT_BINARIZERS:
                raise ValueError(f"there is a weight binarizer {name!r} already: {WEIGHT_BINARIZERS[name]}")
            WEIGHT_BINARIZERS[name] = cls

    def __init__(self) -> None:
        super().__init__()

    def decompose(self, latent: Tensor, previous: Sequence[Tensor] = ()) -> list[tuple[Tensor, Tensor]]:
        """[(signs (O, I, kh, kw), scale (O,)), ...], without gradient."""
        raise NotImplementedError

    def carrier(self, latent: Tensor, previous: Sequence[Tensor], pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """A tensor of the latent's shape whose gradient is the binarizer's."""
        raise NotImplementedError

    def forward(self, latent: Tensor, previous: Sequence[Tensor] = ()) -> Tensor:
        """W^B (O, I, kh, kw) with the binarizer's gradient."""
        pairs = self.decompose(latent, previous)
        terms = [signs * scale.view(-1, 1, 1, 1) for signs, scale in pairs]
        value = terms[0]
        for term in terms[1:]:
            value = value + term
        return straight_through(value, self.carrier(latent, previous, pairs))


class BAMWeight(WeightBinarizer, name="bam"):
    """Bit-accumulated weights: W_n^B = Sign(BN(a_1 W_1 + ... + a_n W_n)) * E|W_n|   (eq. 3 of Xin et al., ECCV 2020).

    Gradient, `latent` (eq. 8):  dL/dW_n = g, nothing to the earlier latents.
    Gradient, `accumulated`:     dL/dW_i = a_i g for i = 1 .. n (the estimator of the accumulated sum).
    Learned alpha gets dL/da_i = sum(g * W_i) in both cases.
    Tie: Sign(0) = +1. Scale per output filter.

    alpha: `one` (the paper's W1), `learned` (n scalars, 1 at the start) or `solved` (eq. 6: a minimum along each
    coordinate, searched anew from the present weights in every call, see solve_alpha; it nearly switches the
    accumulation off, the paper's W2).
    group_index: n - 1, the number of earlier convolutions in the accumulation group.
    """

    ALPHAS = ("one", "learned", "solved")
    GRADIENTS = ("latent", "accumulated")
    accumulates = True

    def __init__(self, *, alpha: str = "one", gradient: str = "latent", group_index: int = 0) -> None:
        super().__init__()
        if alpha not in self.ALPHAS:
            raise ValueError(f"alpha must be one of {self.ALPHAS}, found {alpha!r}")
        if gradient not in self.GRADIENTS:
            raise ValueError(f"gradient must be one of {self.GRADIENTS}, found {gradient!r}")
        self.gradient = gradient
        self.sums_group = alpha != "solved"
        self.alpha = nn.Parameter(torch.ones(group_index + 1)) if alpha == "learned" else None

    def factors(self, latent: Tensor, previous: Sequence[Tensor]) -> Tensor | None:
        """(a_1, ..., a_n), or None for ones."""
        return self.alpha if self.sums_group else solve_alpha(latent, previous)

    def decompose(self, latent: Tensor, previous: Sequence[Tensor] = ()) -> list[tuple[Tensor, Tensor]]:
        """One pair, see WeightBinarizer."""
        with torch.no_grad():
            total = accumulate_filters(latent, previous, self.factors(latent, previous))
            # BN also divides by the deviation, which changes no sign and would cost more than all the rest.
            return [(sign(total - total.mean(dim=(1, 2, 3), keepdim=True)), mean_magnitude(latent))]

    def carrier(self, latent: Tensor, previous: Sequence[Tensor], pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The latent (eq. 8) or the accumulated sum; alpha's gradient comes from that sum in both cases."""
        if self.gradient == "accumulated":
            return accumulate_filters(latent, previous, self.factors(latent, previous))
        if self.alpha is not None:
            # Only the factors learn from this part, where the filters are constants.
            frozen = [weight.detach() for weight in (*previous, latent)]
            return latent + accumulate_filters(frozen[-1], frozen[:-1], self.alpha)
        return latent


class BNNWeight(WeightBinarizer, name="bnn"):
    """W^B = Sign(W), no scale   (Hubara et al., Binarized Neural Networks, NeurIPS 2016; E2FIF).

    Gradient: dL/dW = g where |W| <= 1, else 0; with `clip` off g everywhere, as E2FIF's code has it. Tie: Sign(0) = +1.
    The paper also clips the latents to [-1, 1] after each update; that is the optimizer's part.
    """

    scaled = False

    def __init__(self, *, clip: bool = True) -> None:
        super().__init__()
        self.clip = clip

    def decompose(self, latent: Tensor, previous: Sequence[Tensor] = ()) -> list[tuple[Tensor, Tensor]]:
        """One pair with the scale 1, see WeightBinarizer."""
        with torch.no_grad():
            return [(sign(latent), latent.new_ones(latent.shape[0]))]

    def carrier(self, latent: Tensor, previous: Sequence[Tensor], pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """W inside [-1, 1], or W."""
        return windowed(latent, -1, 1) if self.clip else latent


class DoReFaWeight(WeightBinarizer, name="dorefa"):
    """W^B = Sign(W) * E|W|, one scale for the layer   (Zhou et al., DoReFa-Net with W1, arXiv 1606.06160).

    Gradient: dL/dW = g. Tie: Sign(0) = +1.
    """

    def decompose(self, latent: Tensor, previous: Sequence[Tensor] = ()) -> list[tuple[Tensor, Tensor]]:
        """One pair whose scales are all equal, see WeightBinarizer."""
        with torch.no_grad():
            return [(sign(latent), latent.abs().mean().expand(latent.shape[0]))]

    def carrier(self, latent: Tensor, previous: Sequence[Tensor], pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The latent itself."""
        return latent


class ReActWeight(WeightBinarizer, name="react"):
    """W^B = Sign(W) * E|W|, one scale per output filter   (Liu et al., ReActNet, ECCV 2020; BBCU).

    Gradient: dL/dW = g where |W| <= 1, else 0. Tie: Sign(0) = +1.
    """

    def decompose(self, latent: Tensor, previous: Sequence[Tensor] = ()) -> list[tuple[Tensor, Tensor]]:
        """One pair, see WeightBinarizer."""
        with torch.no_grad():
            return [(sign(latent), mean_magnitude(latent))]

    def carrier(self, latent: Tensor, previous: Sequence[Tensor], pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """W inside [-1, 1]."""
        return windowed(latent, -1, 1)


class BiRealWeight(ReActWeight, name="bireal"):
    """W^B = Sign(W) * E|W|, one scale per output filter   (Liu et al., Bi-Real Net, ECCV 2018).

    Gradient, aware of the magnitude: dL/dW = g * E|W| where |W| <= 1, else 0 (the paper; the authors' PyTorch code
    leaves the factor E|W| out, as `react` does). Tie: Sign(0) = +1.
    """

    def carrier(self, latent: Tensor, previous: Sequence[Tensor], pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """E|W| W inside [-1, 1]."""
        return pairs[0][1].view(-1, 1, 1, 1) * windowed(latent, -1, 1)


class XNORWeight(ReActWeight, name="xnor"):
    """W^B = Sign(W) * E|W|, one scale per output filter   (Rastegari et al., XNOR-Net, ECCV 2016).

    Gradient: dL/dW = g * (1 / n + E|W| [|W| <= 1]) with n = I kh kw, the elements of a filter. Tie: Sign(0) = +1.
    """

    def carrier(self, latent: Tensor, previous: Sequence[Tensor], pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """W / n, and E|W| W inside [-1, 1]."""
        magnitude = pairs[0][1].view(-1, 1, 1, 1)
        return latent / latent[0].numel() + magnitude * windowed(latent, -1, 1)


class ABCWeight(WeightBinarizer, name="abc"):
    """W^B = c_1 B_1 + ... + c_M B_M, B_m = Sign(W - E(W) + u_m std(W))   (Lin et al., ABC-Net, NeurIPS 2017).

    u_m = -1 + 2 (m - 1) / (M - 1), 0 for M = 1; E and std over the layer. c minimizes ||W - W^B||^2 (least squares;
    of several minimizers the shortest).
    Gradient: dL/dW = (c_1 + ... + c_M) g. Tie: Sign(0) = +1.
    Scales per layer (`layer`, the paper) or a least-squares problem for each output filter (`filter`).
    """

    GRANULARITIES = ("layer", "filter")

    def __init__(self, *, bases: int = 3, granularity: str = "layer") -> None:
        super().__init__()
        if bases < 1:
            raise ValueError(f"bases must be at least 1, found {bases}")
        if granularity not in self.GRANULARITIES:
            raise ValueError(f"granularity must be one of {self.GRANULARITIES}, found {granularity!r}")
        self.bases = bases
        self.granularity = granularity

    def decompose(self, latent: Tensor, previous: Sequence[Tensor] = ()) -> list[tuple[Tensor, Tensor]]:
        """One pair per base, see WeightBinarizer."""
        with torch.no_grad():
            centered = latent - latent.mean()
            spread = centered.square().mean().sqrt()
            shifts = torch.linspace(-1, 1, self.bases).tolist() if self.bases > 1 else [0.0]
            signs = [sign(centered + shift * spread) for shift in shifts]
            filters = latent.shape[0]
            problems = filters if self.granularity == "filter" else 1
            # Normal equations of the problems (P, K, M) in float64; pinv, because two bases can be equal.
            matrix = torch.stack([base.reshape(problems, -1) for base in signs], dim=-1).double()
            target = latent.reshape(problems, -1, 1).double()
            gram, right = matrix.mT @ matrix, matrix.mT @ target
            solution = (torch.linalg.pinv(gram, hermitian=True) @ right)[..., 0].to(latent.dtype)
            scales = solution.expand(filters, self.bases)
            return [(base, scales[:, index].contiguous()) for index, base in enumerate(signs)]

    def carrier(self, latent: Tensor, previous: Sequence[Tensor], pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """(c_1 + ... + c_M) W."""
        total = pairs[0][1]
        for _, scale in pairs[1:]:
            total = total + scale
        return latent * total.view(-1, 1, 1, 1)

    def extra_repr(self) -> str:
        """The options that `print` shows."""
        return f"bases={self.bases}, granularity={self.granularity}"


class SketchWeight(WeightBinarizer, name="sketch"):
    """W^B = s_1 B_1 + ... + s_M B_M, B_m = Sign(R_m), s_m = E|R_m|   (Guo et al., Network Sketching, CVPR 2017).

    R_1 = W and R_(m+1) = R_m - s_m B_m: each base binarizes per output filter what the bases before it leave, so that a
    filter has 2^M values. Gradient: dL/dW = g. Tie: Sign(0) = +1. Scale per output filter.
    """

    def __init__(self, *, bases: int = 2) -> None:
        super().__init__()
        if bases < 1:
            raise ValueError(f"bases must be at least 1, found {bases}")
        self.bases = bases

    def decompose(self, latent: Tensor, previous: Sequence[Tensor] = ()) -> list[tuple[Tensor, Tensor]]:
        """One pair per base, see WeightBinarizer."""
        pairs: list[tuple[Tensor, Tensor]] = []
        rest = latent.detach()
        for _ in range(self.bases):
            signs, scale = sign(rest), mean_magnitude(rest)
            pairs.append((signs, scale))
            rest = rest - signs * scale.view(-1, 1, 1, 1)
        return pairs

    def carrier(self, latent: Tensor, previous: Sequence[Tensor], pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The latent itself."""
        return latent

    def extra_repr(self) -> str:
        """The options that `print` shows."""
        return f"bases={self.bases}"
