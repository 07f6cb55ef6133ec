"""OpenVINO as a rival, which has a binary convolution of its own: in fp32, in bf16, or with a binary body.

BinaryConvolution wants its operand from a FakeQuantize of two levels whose values are 0 and 1 (they stand for -1 and
+1), and filters of type u1 with the first weight in the lowest bit, 1 for +1. FakeQuantize sends ties low, so each
limit is the float below the threshold. An int8 tail is FakeQuantize of 256 levels before each convolution; it is a
model of its own, because OpenVINO's compiler does not come back from a binary body and an int8 tail in one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from bam_plugin.bench.rivals import Call, RivalError
from bam_plugin.bench.segments import Job, Segment
from bam_plugin.conversion.onnx_export import float_filters, sign_values
from bam_plugin.packed.graph import Node
from bam_plugin.packed.reference import unpack_filters


class _Translation:
    """Builds an OpenVINO model of fixed size from a segment."""

    def __init__(self, *, job: Job, segment: Segment, binary: bool, int8: bool):
        self.job, self.model = job, job.model
        self.binary, self.int8 = binary, int8
        self.values: dict[str, Any] = {}
        self.bits: list[np.ndarray] = []  # OpenVINO's constants of bits point into these arrays
        self.thresholds = {node.name: node for node in segment.nodes if node.op == "threshold"}
        parameters = []
        for name in segment.inputs:
            height, width, channels = job.values[name].shape
            parameters.append(ops.parameter([1, channels, height, width], np.float32, name=name))
            self.values[name] = parameters[-1]
        for node in segment.nodes:
            if node.op != "threshold":
                self.values[node.name] = self.translate(node)
        self.made = ov.Model([self.values[name] for name in segment.outputs], parameters, "part")  # type: ignore  (its stubs disagree)

    def constant(self, array: Any) -> Any:
        return ops.constant(np.ascontiguousarray(array, dtype=np.float32))

    def per_channel(self, array: np.ndarray) -> Any:
        return self.constant(array.reshape(1, -1, 1, 1))

    def signs(self, node: Node, alphabet: str) -> Any:
        key = f"{node.name} {alphabet}"
        if key not in self.values:
            x, limits = self.values[node.inputs[0]], self.model.tensors[node.tensors["threshold"]]
            high, low = map(self.per_channel, sign_values(node, self.model, "0,1" if self.binary else alphabet))
            if self.binary:
                # Ties go low, infinities must become the largest floats.
                below = self.per_channel(np.nan_to_num(np.nextafter(limits, np.float32(-np.inf))))
                self.values[key] = ops.fake_quantize(x, below, below, low, high, 2)
            else:
                self.values[key] = ops.select(ops.greater_equal(x, self.per_channel(limits)), high, low)
        return self.values[key]

    def convolution(self, x: Any, weight: Any, kernel: int) -> Any:
        return ops.convolution(x, weight, [1, 1], [kernel // 2] * 2, [kernel // 2] * 2, [1, 1])

    def binary_convolution(self, node: Node) -> Any:
        alphabet, kernel = str(node.attrs["alphabet"]), int(node.attrs["kernel"])
        signs = self.signs(self.thresholds[node.inputs[0]], alphabet)
        if not self.binary:
            return self.convolution(signs, self.constant(float_filters(node, self.model)), kernel)
        if alphabet != "-1,+1":
            raise RivalError("its BinaryConvolution knows -1 and +1 only, the network has 0 and 1")
        channels = self.model.graph.types[node.inputs[0]].channels
        if channels % 8 or len(self.model.tensors[node.tensors["scale"]]) % 8:
            raise RivalError("its BinaryConvolution (2026.4) is wrong where channels are no multiple of 8")
        negative = unpack_filters(self.model.tensors[node.tensors["weight"]], kernel, channels).transpose(0, 3, 1, 2)
        bits = np.packbits(~negative.reshape(-1), bitorder="little")
        self.bits.append(bits)
        weight = ov.op.Constant(ov.Tensor(bits, ov.Shape(negative.shape), ov.Type.u1))
        pads = [kernel // 2] * 2
        return ops.binary_convolution(signs, weight, [1, 1], pads, pads, [1, 1], "xnor-popcount", 0.0, "explicit")

    def float_convolution(self, node: Node, x: Any, arrays: dict[str, np.ndarray]) -> Any:
        weight = self.constant(arrays["weight"])
        if self.int8:
            seen = self.job.values[node.inputs[0]]
            # Operands that are never negative use all 256 levels for what is above zero.
            high = max(float(np.abs(seen).max()), 1e-6)
            low = 0.0 if seen.min() >= 0 else -high * 128 / 127
            x = ops.fake_quantize(x, *map(self.constant, (low, high, low, high)), 256)
            largest = np.abs(arrays["weight"]).max(axis=(1, 2, 3), keepdims=True) + np.float32(1e-12)
            weight = ops.fake_quantize(weight, *map(self.constant, (-largest, largest) * 2), 255)
        made = self.convolution(x, weight, arrays["weight"].shape[2])
        return ops.add(made, self.per_channel(arrays["bias"])) if "bias" in arrays else made

    def translate(self, node: Node) -> Any:
        attrs = node.attrs
        arrays = {role: self.model.tensors[name] for role, name in node.tensors.items()}
        if node.op == "binary_conv2d":
            dot = self.binary_convolution(node)
            return ops.multiply(dot, self.per_channel(arrays["scale"]))
        x, *rest = (self.values[name] for name in node.inputs)
        if node.op == "conv2d":
            return self.float_convolution(node, x, arrays)
        if node.op in ("add", "mul"):
            return (ops.add if node.op == "add" else ops.multiply)(x, *rest)
        if node.op == "relu":
            return ops.relu(x)
        if node.op == "leaky_relu":
            return ops.prelu(x, self.constant([attrs["slope"]]))
        if node.op == "prelu":
            return ops.prelu(x, self.constant(arrays["slope"]))
        if node.op == "affine":
            return ops.add(ops.multiply(x, self.per_channel(arrays["scale"])), self.per_channel(arrays["shift"]))
        if node.op == "scale":
            return ops.multiply(x, self.constant(attrs["factor"]))
        if node.op == "clamp":
            return ops.clamp(x, float(attrs["low"]), float(attrs["high"]))
        if node.op == "channel_mean":
            return ops.reduce_mean(ops.abs(x) if attrs["statistic"] == "mean_abs" else x, [1], True)
        if node.op == "pixel_shuffle":
            return ops.depth_to_space(x, "depth_first", int(attrs["factor"]))
        if node.op == "resize":
            return self.resize(x, int(attrs["factor"]), str(attrs["mode"]))
        raise RivalError(f"{node.name}: the operation {node.op!r} has no OpenVINO form")

    def resize(self, x: Any, factor: int, mode: str) -> Any:
        near = mode == "nearest"
        return ops.interpolate(
            x,
            np.array([factor, factor], dtype=np.float32),
            {"nearest": "nearest", "bilinear": "linear_onnx", "bicubic": "cubic"}[mode],
            "scales",
            coordinate_transformation_mode="asymmetric" if near else "half_pixel",
            nearest_mode="floor" if near else "round_prefer_floor",
            cube_coeff=-0.75,
            axes=np.array([2, 3], dtype=np.int64),
        )


class _Request:
    """A compiled segment."""

    def __init__(self, *, job: Job, segment: Segment, precision: str):
        translation = _Translation(job=job, segment=segment, binary=precision == "binary", int8=precision == "int8")
        settings = {
            "INFERENCE_NUM_THREADS": job.threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        }
        self._request = ov.Core().compile_model(translation.made, "CPU", settings).create_infer_request()
        self._bits = translation.bits
        self._outputs = range(len(segment.outputs))

    def run(self, values: list[np.ndarray]) -> list[np.ndarray]:
        """(1, C, H, W) arrays in and out; the results are overwritten by the next run."""
        self._request.infer(values, share_inputs=True)
        return [self._request.get_output_tensor(index).data for index in self._outputs]


def _planes(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value.transpose(2, 0, 1)[None])


def _pixels(outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [output[0].transpose(1, 2, 0) for output in outputs]


def build(job: Job, part: str, *, body: str = "fp32", tail: str = "fp32") -> Call:
    """One part as a call. `body` is fp32, bf16 or binary, `tail` fp32, bf16 or int8; two of a kind are one model."""
    if part == "whole" and body != tail and (body, tail) != ("binary", "fp32"):
        return _chain(job, body, tail)
    segment = job.segments[part]
    request = _Request(job=job, segment=segment, precision=tail if part == "tail" else body)
    feeds = [_planes(job.values[name]) for name in segment.inputs]
    return lambda: _pixels(request.run(feeds))


def _chain(job: Job, body: str, tail: str) -> Call:
    """Body and tail as two models, the second reading what the first has written."""
    if "body" not in job.segments:
        raise RivalError("the network has no body and tail to run apart")
    first, second = job.segments["body"], job.segments["tail"]
    requests = [_Request(job=job, segment=first, precision=body), _Request(job=job, segment=second, precision=tail)]
    images = {name: _planes(job.values[name]) for name in (*first.inputs, *second.inputs) if name not in first.outputs}

    def call() -> list[np.ndarray]:
        made = dict(zip(first.outputs, requests[0].run([images[name] for name in first.inputs]), strict=True))
        return _pixels(requests[1].run([made[name] if name in made else images[name] for name in second.inputs]))

    return call
