"""A packed graph, or a part of it, as a torch.fx module in float: signs are floats, too.

BatchNorm and sign are one comparison already, and the filters are accumulated. A network in evaluation does both anew
in each call. The module is in channels_last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bam_plugin.conversion.twins import TWINS, sign_values
from bam_plugin.nn.upsampling import bicubic
from bam_plugin.packed.errors import ConversionError
from bam_plugin.packed.format import PackedModel
from bam_plugin.packed.graph import Node


class Translation:
    """Writes a torch.fx graph node by node.

    The placeholders are the values `inputs`, the outputs those of `outputs`. With `dtype` bfloat16 the convolutions'
    operands are bfloat16 and everything between them is float32.
    """

    torch, F, bicubic = torch, F, staticmethod(bicubic)

    def __init__(
        self,
        *,
        model: PackedModel,
        nodes: Sequence[Node],
        inputs: Sequence[str],
        outputs: Sequence[str],
        dtype: torch.dtype = torch.float32,
    ):
        self.model, self.dtype = model, dtype
        self._root = nn.Module()
        self._graph = fx.Graph()
        self._values: dict[str, Any] = {}
        self._thresholds = {node.name: node for node in nodes if node.op == "threshold"}
        for index, name in enumerate(inputs):
            self._values[name] = self._graph.placeholder(f"x{index}")
        for node in nodes:
            if node.op in TWINS:
                arrays = {role: model.tensors[name] for role, name in node.tensors.items()}
                operands = [self._values[name] for name in node.inputs if name not in self._thresholds]
                self._values[node.name] = TWINS[node.op].torch(self, node, arrays, *operands)
            elif node.op != "threshold":  # the reader of a threshold makes its map, because it knows the alphabet
                raise ConversionError(f"{node.name}: the operation {node.op!r} has no PyTorch form")
        self._graph.output(tuple(self._values[name] for name in outputs))

    def module(self) -> fx.GraphModule:
        """The module: (N, C, H, W) tensors in, a tuple of them out."""
        self._graph.eliminate_dead_code()
        return fx.GraphModule(self._root, self._graph)

    def buffer(self, array: np.ndarray, dtype: torch.dtype = torch.float32) -> fx.Node:
        """An array as a buffer of the module."""
        name = f"constant{len(list(self._root.buffers()))}"
        tensor = torch.from_numpy(np.array(array)).to(dtype)
        if tensor.ndim == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        self._root.register_buffer(name, tensor)
        return self._graph.get_attr(name)

    def per_channel(self, array: np.ndarray, dtype: torch.dtype = torch.float32) -> fx.Node:
        """A buffer (C,) in the shape that serves every pixel."""
        return self.buffer(array.reshape(1, -1, 1, 1), dtype)

    def call(self, function: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A call in the graph."""
        return self._graph.call_function(function, args, kwargs)

    def reduced(self, x: fx.Node) -> fx.Node:
        """A convolution's operand in its dtype."""
        return x if self.dtype == torch.float32 else self.call(Tensor.to, x, self.dtype)

    def rounded(self, x: fx.Node) -> fx.Node:
        """A convolution's result in float32."""
        return x if self.dtype == torch.float32 else self.call(Tensor.to, x, torch.float32)

    def signs_of(self, conv: Node) -> fx.Node:
        """The float map that a binary convolution reads."""
        node, alphabet = self._thresholds[conv.inputs[0]], str(conv.attrs["alphabet"])
        key = f"{node.name} {alphabet}"
        if key not in self._values:
            limit = self.per_channel(self.model.tensors[node.tensors["threshold"]])
            reached = self.call(torch.ge, self._values[node.inputs[0]], limit)
            both = [self.per_channel(values, self.dtype) for values in sign_values(node, self.model, alphabet)]
            self._values[key] = self.call(torch.where, reached, *both)
        return self._values[key]
