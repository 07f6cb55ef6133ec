"""The costs of a network: parameters, multiply-accumulates (MACs), binary-aware operations and packed size, per layer.

The network runs once on PyTorch's `meta` device, which has shapes but no values. So a 1280x720 output costs neither
memory nor time. A dispatch mode sees every tensor operation of that run, of modules and of functions. So any network of
any library can be counted.

The convention that reproduces the numbers printed in the paper (Xin et al., ECCV 2020): a convolution or matrix product
costs its multiplications, plus 1 per added bias, plus 1 per element that passes a ReLU, leaky ReLU or PReLU;
normalizations, interpolations and element-wise sums are free. All trained parameters count.

Binary-aware costs as Xia et al. (ICLR 2023) count them: params = float + binary / 32, OPs = float MACs + binary MACs
/ 64. A 1-bit filter on full-precision activations saves parameters but no operation: its MACs are float.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bam_plugin.errors import BamError
from bam_plugin.nn.binary_conv import BinaryConv2d
from bam_plugin.packed.graph import packed_filter_bytes

# Sides of the square input that finds the factor between input and output. The first is divisible by the windows and
# strides of the usual networks, the second by every number up to 10, and 16; without values its size costs nothing.
_PROBE_SIZES = (48, 5040)
# Networks want inputs that are multiples of these.
_MULTIPLES = (2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 48, 64)


class ProfileError(BamError):
    """A network cannot be counted."""


@dataclass(frozen=True)
class LayerCost:
    """Costs of one layer. A `BinaryConv2d` is one layer together with its normalization, thresholds and scales."""

    name: str
    """Name of the module in the network; empty for operations of the network's own forward."""
    kind: str
    """Class of the module."""
    shape: str
    """Shape of its weight, such as `64x64x3x3`, or an empty string."""
    float_params: int
    """Trained values that stay full precision."""
    binary_params: int
    """Values of latent weights that are used as signs only."""
    bits: int
    """1-bit values after packing: `binary_params` times the number of weight bases of the binarizer."""
    float_macs: int
    """MACs with a full-precision factor, with additions of biases and activations."""
    binary_macs: int
    """MACs of signs with signs, over all pairs of a weight base and an activation base."""
    base_pairs: int
    """How often the convolution is computed for one result: weight bases times activation bases."""
    packed_bytes: int
    """Bytes of its tensors in a packed graph (the file's header, which has the graph, comes once on top): filters as
    bits in whole bytes, the rest as float32, what stands before a sign folded into one threshold per channel."""

    @property
    def params(self) -> int:
        """The paper's count of parameters: every trained value is one, binary or not."""
        return self.float_params + self.binary_params

    @property
    def macs(self) -> int:
        """The paper's count of operations: each convolution once, binary or not."""
        return self.float_macs + self.binary_macs // self.base_pairs


@dataclass(frozen=True)
class Profile:
    """Costs of a network for one image."""

    network: str
    input_size: tuple[int, int]
    """(width, height) of the input in pixels."""
    output_size: tuple[int, int]
    """(width, height) of the output in pixels."""
    layers: tuple[LayerCost, ...] = field(repr=False)

    def total(self, attribute: str) -> int:
        """The sum of one attribute of LayerCost over all layers."""
        return sum(getattr(layer, attribute) for layer in self.layers)

    @property
    def effective_params(self) -> float:
        """Parameters as 32-bit values: float + bits / 32."""
        return self.total("float_params") + self.total("bits") / 32

    @property
    def ops(self) -> float:
        """Operations: float MACs + binary MACs / 64."""
        return self.total("float_macs") + self.total("binary_macs") / 64

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        names = ("params", "float_params", "binary_params", "bits", "macs", "float_macs", "binary_macs", "packed_bytes")
        return {
            "network": self.network,
            "input_size": list(self.input_size),
            "output_size": list(self.output_size),
            "total": {
                **{name: self.total(name) for name in names},
                "effective_params": self.effective_params,
                "ops": self.ops,
            },
            "layers": [{**asdict(layer), "params": layer.params, "macs": layer.macs} for layer in self.layers],
        }


def profile(
    network: nn.Module, *, output_size: tuple[int, int] = (1280, 720), num_in_ch: int = 3, name: str | None = None
) -> Profile:
    """Count `network` for one output image of about `output_size` = (width, height) pixels; it is left untouched.

    The input is `output_size` divided by the network's factor, rounded to whole pixels; the sizes used are in the
    result. `num_in_ch`: channels of the input. Raises ProfileError when the forward cannot run without values, or not
    on this size.
    """
    counted = _on_meta(network)
    width, height = output_size
    factor = _factor(counted, num_in_ch)
    input_size = (max(1, round(width / factor)), max(1, round(height / factor)))

    layers = _find_layers(counted)
    with _OperationCounter(counted, layers) as counter:
        try:
            output = _forward(counted, (num_in_ch, input_size[1], input_size[0]))
        except ProfileError as error:
            raise _unfit(_on_meta(network), num_in_ch, input_size, factor, error) from error
    return Profile(
        network=name or type(network).__name__,
        input_size=input_size,
        output_size=(output.shape[-1], output.shape[-2]),
        layers=tuple(_layer_costs(counted, layers, counter)),
    )


def weight_bases(conv: BinaryConv2d) -> int:
    """How many 1-bit bases the weights of the convolution have."""
    return conv.binarize_weight.bases


def activation_bases(conv: BinaryConv2d) -> int:
    """How many 1-bit bases the activations of the convolution have; 0 where they are full precision."""
    binarizer = conv.binarize_activation
    return binarizer.bases if binarizer.alphabet is not None else 0


def _on_meta(network: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(network).to("meta").eval()
    except Exception as error:
        raise ProfileError(
            f"{type(network).__name__} cannot be copied to PyTorch's meta device ({error}); pass the bare network, not "
            "one that is wrapped or already ran under autograd hooks"
        ) from error


def _forward(network: nn.Module, shape: tuple[int, int, int]) -> Tensor:
    try:
        # Tensors that a forward makes itself belong to the same device.
        with torch.no_grad(), torch.device("meta"):
            return network(torch.empty(1, *shape))
    except Exception as error:
        raise ProfileError(
            f"{type(network).__name__} does not run on a (1, {', '.join(map(str, shape))}) input without values "
            f"({type(error).__name__}: {error}); check its number of input channels and the output size"
        ) from error


def _runs(network: nn.Module, shape: tuple[int, int, int]) -> bool:
    try:
        _forward(network, shape)
    except ProfileError:
        return False
    return True


def _factor(network: nn.Module, channels: int) -> float:
    """Size of the output by size of the input."""
    size = next((size for size in _PROBE_SIZES if _runs(network, (channels, size, size))), _PROBE_SIZES[0])
    return _forward(network, (channels, size, size)).shape[-1] / size


def _unfit(
    network: nn.Module, channels: int, size: tuple[int, int], factor: float, error: ProfileError
) -> ProfileError:
    """The error of a network that runs, but not on inputs of `size`: it names the multiple that the network needs."""
    for multiple in _MULTIPLES:
        width, height = (math.ceil(side / multiple) * multiple for side in size)
        # Two neighbours: a network that needs a larger multiple cannot take both.
        if all(_runs(network, (channels, height + more, width + more)) for more in (0, multiple)):
            step, fitting = round(multiple * factor), f"{round(width * factor)}x{round(height * factor)}"
            return ProfileError(
                f"{type(network).__name__} does not run on a {size[0]}x{size[1]} input, but in multiples of {multiple} "
                f"pixels; choose the output size (--size) in multiples of {step}, such as {fitting}"
            )
    return error


def _find_layers(network: nn.Module) -> dict[str, str]:
    """Module name -> name of the layer that owns it: parts of a BinaryConv2d belong to that convolution."""
    owners: dict[str, str] = {}
    prefixes: list[tuple[str, str]] = []
    for name, module in network.named_modules():
        owner = next((conv for prefix, conv in prefixes if name.startswith(prefix)), name)
        if isinstance(module, BinaryConv2d) and owner == name:
            prefixes.insert(0, (f"{name}." if name else "", name))
        owners[name] = owner
    return owners


def _layer_costs(network: nn.Module, owners: dict[str, str], counter: _OperationCounter) -> Iterable[LayerCost]:
    modules = dict(network.named_modules())
    trained: dict[str, int] = defaultdict(int)
    for name, parameter in network.named_parameters():
        trained[owners[name.rpartition(".")[0]]] += parameter.numel()
    for name in dict.fromkeys(owners.values()):
        module = modules[name]
        float_macs, binary_macs = counter.float_macs[name], counter.binary_macs[name]
        if not (trained[name] or float_macs or binary_macs):
            continue
        shape = getattr(getattr(module, "weight", None), "shape", ())
        binary = isinstance(module, BinaryConv2d)
        latent = module.weight.numel() if binary else 0
        yield LayerCost(
            name=name,
            kind=type(module).__name__,
            shape="x".join(map(str, shape)),
            float_params=trained[name] - latent,
            binary_params=latent,
            bits=latent * weight_bases(module) if binary else 0,
            float_macs=float_macs,
            binary_macs=binary_macs,
            base_pairs=max(1, weight_bases(module) * activation_bases(module)) if binary else 1,
            packed_bytes=_packed_bytes(module) if binary else 4 * max(trained[name], counter.slopes[name]),
        )


def _packed_bytes(conv: BinaryConv2d) -> int:
    """Bytes of the nodes that a packed graph has for `conv`, see conversion.lowering_ops."""
    filters, channels, kernel, _ = conv.weight.shape
    binarizer = conv.binarize_activation
    if binarizer.alphabet is None:  # a float convolution with the sum of the weight's bases
        return 4 * conv.weight.numel()
    # Each pair of bases is a node of its own, with filters and a float32 scale per filter.
    terms = weight_bases(conv) * activation_bases(conv) * filters * (packed_filter_bytes(channels, kernel) + 4)
    # A float32 threshold and a byte for its direction.
    thresholds = activation_bases(conv) * channels * 5
    # A float32 scale and shift per channel for the value, and the window.
    return terms + thresholds + (8 * channels + 4 * kernel**2 if binarizer.has_magnitude else 0)


def _elements(output: Any) -> int:
    return output.numel() if isinstance(output, Tensor) else 0


def _convolution(args: tuple[Any, ...], output: Tensor) -> tuple[int, int]:
    """(multiplications, additions of biases) of aten.convolution."""
    source, weight, bias = args[0], args[1], args[2]
    transposed = args[6]
    # Each weight value meets every pixel of the output, or of the input where the convolution is transposed.
    pixels = math.prod((source if transposed else output).shape[2:]) * output.shape[0]
    return weight.numel() * pixels, output.numel() if bias is not None else 0


def _product(left: Tensor, output: Tensor) -> int:
    return output.numel() * left.shape[-1]


_aten = torch.ops.aten
# Operation -> function of (args, output) that gives (multiplications, additions).
_PRODUCTS: dict[Any, Callable[[tuple[Any, ...], Tensor], tuple[int, int]]] = {
    _aten.convolution.default: _convolution,
    _aten.mm.default: lambda args, output: (_product(args[0], output), 0),
    _aten.bmm.default: lambda args, output: (_product(args[0], output), 0),
    _aten.addmm.default: lambda args, output: (_product(args[1], output), output.numel()),
    _aten.baddbmm.default: lambda args, output: (_product(args[1], output), output.numel()),
}
_CONVOLUTIONS = {_aten.convolution.default}
_RECTIFIERS = {"relu", "relu_", "leaky_relu", "leaky_relu_", "prelu", "_prelu_kernel"}


class _OperationCounter(TorchDispatchMode):
    """Adds the operations of a forward to the layer whose forward is running."""

    def __init__(self, network: nn.Module, owners: dict[str, str]) -> None:
        super().__init__()
        self.float_macs: dict[str, int] = defaultdict(int)
        self.binary_macs: dict[str, int] = defaultdict(int)
        self.slopes: dict[str, int] = defaultdict(int)
        """PReLUs in a packed graph have a slope per channel, also where the network has one for all."""
        self._network = network
        self._owners = owners
        self._running = [""]
        # Layer -> the shape of its weights, where they meet signs.
        self._binary: dict[str, torch.Size] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> _OperationCounter:
        for name, module in self._network.named_modules():
            owner = self._owners[name]
            self._handles.append(module.register_forward_pre_hook(lambda *_, owner=owner: self._running.append(owner)))
            self._handles.append(module.register_forward_hook(lambda *_: self._leave()))
            if isinstance(module, BinaryConv2d) and activation_bases(module):
                self._binary[name] = module.weight.shape
        return super().__enter__()

    def __exit__(self, *details: Any) -> None:
        for handle in self._handles:
            handle.remove()
        super().__exit__(*details)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        layer = self._running[-1]
        if func in _PRODUCTS:
            products, additions = _PRODUCTS[func](args, output)
            # The convolution itself, not a box filter over magnitudes beside it.
            if func in _CONVOLUTIONS and self._binary.get(layer) == args[1].shape:
                self.binary_macs[layer] += products
                self.float_macs[layer] += additions
            else:
                self.float_macs[layer] += products + additions
        elif func.__name__.partition(".")[0] in _RECTIFIERS:
            self.float_macs[layer] += _elements(output)
            if "prelu" in func.__name__:
                self.slopes[layer] = output.shape[1]
        return output

    def _leave(self) -> None:
        self._running.pop()
