"""PyTorch as a rival: the packed graph as a torch.fx module in channels_last, eager or by torch.compile.

Signs are floats -1 and +1, so a binary convolution is a float convolution, as it is in training. BatchNorm and sign are
one comparison already and filters are accumulated, which a network in evaluation would do anew in each call. In bf16
the convolutions' operands are bf16 and everything between them is float32.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bam_plugin.bench.rivals import Call, RivalError
from bam_plugin.bench.segments import Job, Segment
from bam_plugin.conversion.onnx_export import float_filters, sign_values
from bam_plugin.packed.format import PackedModel
from bam_plugin.packed.graph import Node


class _Translation:
    """Writes a torch.fx graph node by node."""

    def __init__(self, *, model: PackedModel, segment: Segment, bf16: bool):
        self.model = model
        self.dtype = torch.bfloat16 if bf16 else torch.float32
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.values: dict[str, Any] = {}
        self.thresholds = {node.name: node for node in segment.nodes if node.op == "threshold"}
        for index, name in enumerate(segment.inputs):
            self.values[name] = self.graph.placeholder(f"x{index}")
        for node in segment.nodes:
            if node.op != "threshold":
                self.values[node.name] = self.translate(node)
        self.graph.output(tuple(self.values[name] for name in segment.outputs))

    def module(self) -> fx.GraphModule:
        self.graph.eliminate_dead_code()
        return fx.GraphModule(self.root, self.graph)

    def buffer(self, array: np.ndarray, dtype: torch.dtype = torch.float32) -> fx.Node:
        name = f"constant{len(list(self.root.buffers()))}"
        tensor = torch.from_numpy(np.array(array)).to(dtype)
        if tensor.ndim == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        self.root.register_buffer(name, tensor)
        return self.graph.get_attr(name)

    def per_channel(self, array: np.ndarray, dtype: torch.dtype = torch.float32) -> fx.Node:
        return self.buffer(array.reshape(1, -1, 1, 1), dtype)

    def call(self, function: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self.graph.call_function(function, args, kwargs)

    def convolution(self, x: fx.Node, weight: np.ndarray, bias: np.ndarray | None) -> fx.Node:
        packed_bias = None if bias is None else self.buffer(bias, self.dtype)
        arguments = (x, self.buffer(weight, self.dtype), packed_bias)
        return self.call(F.conv2d, *arguments, padding=weight.shape[2] // 2)

    def signs(self, node: Node, alphabet: str) -> fx.Node:
        key = f"{node.name} {alphabet}"
        if key not in self.values:
            limit = self.per_channel(self.model.tensors[node.tensors["threshold"]])
            reached = self.call(torch.ge, self.values[node.inputs[0]], limit)
            both = [self.per_channel(values, self.dtype) for values in sign_values(node, self.model, alphabet)]
            self.values[key] = self.call(torch.where, reached, *both)
        return self.values[key]

    def translate(self, node: Node) -> fx.Node:
        attrs = node.attrs
        arrays = {role: self.model.tensors[name] for role, name in node.tensors.items()}
        if node.op == "binary_conv2d":
            signs = self.signs(self.thresholds[node.inputs[0]], str(attrs["alphabet"]))
            dot = self.convolution(signs, float_filters(node, self.model), None)
            return self.call(operator.mul, dot, self.per_channel(arrays["scale"]))
        x, *rest = (self.values[name] for name in node.inputs)
        if node.op == "conv2d":
            if self.dtype != torch.float32:
                x = self.call(Tensor.to, x, self.dtype)
            made = self.convolution(x, arrays["weight"], arrays.get("bias"))
            return made if self.dtype == torch.float32 else self.call(Tensor.to, made, torch.float32)
        if node.op in ("add", "mul"):
            return self.call(getattr(operator, node.op), x, *rest)
        if node.op == "relu":
            return self.call(F.relu, x)
        if node.op == "leaky_relu":
            return self.call(F.leaky_relu, x, float(attrs["slope"]))
        if node.op == "prelu":
            return self.call(F.prelu, x, self.buffer(arrays["slope"]))
        if node.op == "affine":
            product = self.call(operator.mul, x, self.per_channel(arrays["scale"]))
            return self.call(operator.add, product, self.per_channel(arrays["shift"]))
        if node.op == "scale":
            return self.call(operator.mul, x, float(attrs["factor"]))
        if node.op == "clamp":
            return self.call(torch.clamp, x, float(attrs["low"]), float(attrs["high"]))
        if node.op == "channel_mean":
            values = self.call(torch.abs, x) if attrs["statistic"] == "mean_abs" else x
            return self.call(torch.mean, values, dim=1, keepdim=True)
        if node.op == "pixel_shuffle":
            return self.call(F.pixel_shuffle, x, int(attrs["factor"]))
        if node.op == "resize":
            how = {"mode": attrs["mode"]} | ({} if attrs["mode"] == "nearest" else {"align_corners": False})
            return self.call(F.interpolate, x, scale_factor=float(attrs["factor"]), **how)
        raise RivalError(f"{node.name}: the operation {node.op!r} has no PyTorch form")


def build(job: Job, part: str, *, bf16: bool = False, compiled: bool = False) -> Call:
    """One part as a call, compiled for the present number of threads where `compiled`."""
    segment = job.segments[part]
    torch.set_num_threads(job.threads)
    network: Any = _Translation(model=job.model, segment=segment, bf16=bf16).module()
    inputs = [
        torch.from_numpy(np.ascontiguousarray(job.values[name])).permute(2, 0, 1)[None] for name in segment.inputs
    ]
    if compiled:
        torch._dynamo.reset()  # code compiled for another number of threads keeps that number
        network = torch.compile(network, dynamic=False, options={"freezing": True})

    def call() -> list[np.ndarray]:
        torch.set_num_threads(job.threads)
        with torch.inference_mode():
            outputs = network(*inputs)
        return [output[0].permute(1, 2, 0).numpy() for output in outputs]

    return call
