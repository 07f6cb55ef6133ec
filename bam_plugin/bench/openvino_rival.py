"""OpenVINO as a rival. It reads the ONNX model of a part. A binary body and an int8 tail are put in afterwards.

BinaryConvolution takes its operand from a FakeQuantize of two levels with the values 0 and 1, which stand for -1 and
+1. Its filters have the type u1, with the first weight in the lowest bit and 1 for +1. FakeQuantize sends ties low, so
each limit is the float below the threshold. An int8 tail has a FakeQuantize of 256 levels before each convolution. It
is a model of its own, because OpenVINO's compiler hangs on a binary body and an int8 tail in one model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from bam_plugin.bench.rivals import Call, RivalError
from bam_plugin.bench.segments import Segment, Workload
from bam_plugin.conversion.onnx_export import export_segment
from bam_plugin.conversion.twins import sign_values
from bam_plugin.packed.bits import unpack_filters
from bam_plugin.packed.graph import Node


class _Translation:
    """An OpenVINO model of fixed size from the ONNX model of a segment."""

    def __init__(self, *, workload: Workload, segment: Segment, binary: bool, int8: bool):
        self.workload, self.model = workload, workload.model
        self.bits: list[np.ndarray] = []  # OpenVINO's constants of bits point into these arrays
        data = export_segment(workload.model, segment.nodes, inputs=segment.inputs, outputs=segment.outputs)
        self.made = ov.Core().read_model(data)
        shapes = {name: workload.values[name].shape for name in segment.inputs}
        self.made.reshape({name: [1, shape[2], *shape[:2]] for name, shape in shapes.items()})
        nodes = {node.name: node for node in segment.nodes}
        self.signs: dict[str, Any] = {}  # threshold -> its map of 0 and 1
        for conv in [op for op in self.made.get_ordered_ops() if op.get_type_name() == "Convolution"]:
            # The export names the filters of a convolution after its node.
            node = nodes[_source(conv, 1).get_friendly_name().removesuffix(".weight")]
            if node.op == "binary_conv2d" and binary:
                self.put_binary(conv, node, nodes[node.inputs[0]])
            elif node.op == "conv2d" and int8:
                self.quantize(conv, node)
        self.made.validate_nodes_and_infer_types()

    def put_binary(self, conv: Any, node: Node, threshold: Node) -> None:
        """Replace a convolution and the rounding behind it by a BinaryConvolution."""
        alphabet, kernel = str(node.attrs["alphabet"]), int(node.attrs["kernel"])
        if alphabet != "-1,+1":
            raise RivalError("its BinaryConvolution takes -1 and +1 only, and the network has 0 and 1")
        channels = self.model.graph.types[node.inputs[0]].channels
        if channels % 8 or len(self.model.tensors[node.tensors["scale"]]) % 8:
            raise RivalError("its BinaryConvolution (2026.4) is wrong unless the channels are a multiple of 8")
        if threshold.name not in self.signs:
            x = _source_output(_source(_source(conv, 0), 0), 0)  # Convolution <- Select <- GreaterEqual <- x
            self.signs[threshold.name] = self.sign_map(x, threshold)
        negative = unpack_filters(self.model.tensors[node.tensors["weight"]], kernel, channels).transpose(0, 3, 1, 2)
        bits = np.packbits(~negative.reshape(-1), bitorder="little")
        self.bits.append(bits)
        weight = ov.op.Constant(ov.Tensor(bits, ov.Shape(negative.shape), ov.Type.u1))
        pads = [kernel // 2] * 2
        operands = (self.signs[threshold.name], weight, [1, 1], pads, pads, [1, 1])
        made = ops.binary_convolution(*operands, "xnor-popcount", 0.0, "explicit")
        for reader in list(conv.output(0).get_target_inputs()):
            reader.replace_source_output(made.output(0))

    def sign_map(self, x: Any, threshold: Node) -> Any:
        limits = self.model.tensors[threshold.tensors["threshold"]]
        high, low = map(_per_channel, sign_values(threshold, self.model, "0,1"))
        # Ties go low. Infinities become the largest floats.
        below = _per_channel(np.nan_to_num(np.nextafter(limits, np.float32(-np.inf))))
        return ops.fake_quantize(x, below, below, low, high, 2)

    def quantize(self, conv: Any, node: Node) -> None:
        """Round the operand and the filters of a convolution to 8 bits."""
        seen = self.workload.values[node.inputs[0]]
        # Operands that are never negative use all 256 levels for values above zero.
        high = max(float(np.abs(seen).max()), 1e-6)
        low = 0.0 if seen.min() >= 0 else -high * 128 / 127
        x = ops.fake_quantize(_source_output(conv, 0), *map(_constant, (low, high, low, high)), 256)
        weights = self.model.tensors[node.tensors["weight"]]
        largest = np.abs(weights).max(axis=(1, 2, 3), keepdims=True) + np.float32(1e-12)
        weight = ops.fake_quantize(_constant(weights), *map(_constant, (-largest, largest) * 2), 255)
        conv.input(0).replace_source_output(x.output(0))
        conv.input(1).replace_source_output(weight.output(0))


def _source_output(op: Any, index: int) -> Any:
    return op.input(index).get_source_output()


def _source(op: Any, index: int) -> Any:
    return _source_output(op, index).get_node()


def _constant(array: Any) -> Any:
    return ops.constant(np.ascontiguousarray(array, dtype=np.float32))


def _per_channel(array: np.ndarray) -> Any:
    return _constant(array.reshape(1, -1, 1, 1))


class _Request:
    """A compiled segment."""

    def __init__(self, *, workload: Workload, segment: Segment, precision: str):
        translation = _Translation(
            workload=workload, segment=segment, binary=precision == "binary", int8=precision == "int8"
        )
        settings = {
            "INFERENCE_NUM_THREADS": workload.threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        }
        self._request = ov.Core().compile_model(translation.made, "CPU", settings).create_infer_request()
        self._bits = translation.bits
        self._outputs = range(len(segment.outputs))

    def run(self, values: list[np.ndarray]) -> list[np.ndarray]:
        """Arrays (1, C, H, W) in and out. The next run overwrites the results."""
        self._request.infer(values, share_inputs=True)
        return [self._request.get_output_tensor(index).data for index in self._outputs]


def _planes(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value.transpose(2, 0, 1)[None])


def _pixels(outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [output[0].transpose(1, 2, 0) for output in outputs]


def build(workload: Workload, part: str, *, body: str = "fp32", tail: str = "fp32") -> Call:
    """A call that computes one part.

    `body` is fp32, bf16 or binary, `tail` is fp32, bf16 or int8. Equal ones are one model.
    """
    if part == "whole" and body != tail and (body, tail) != ("binary", "fp32"):
        return _chain(workload, body, tail)
    segment = workload.segments[part]
    request = _Request(workload=workload, segment=segment, precision=tail if part == "tail" else body)
    feeds = [_planes(workload.values[name]) for name in segment.inputs]
    return lambda: _pixels(request.run(feeds))


def _chain(workload: Workload, body: str, tail: str) -> Call:
    """Body and tail as two models. The second reads what the first has written."""
    if "body" not in workload.segments:
        raise RivalError("the network does not have both a body and a tail")
    first, second = workload.segments["body"], workload.segments["tail"]
    requests = [
        _Request(workload=workload, segment=first, precision=body),
        _Request(workload=workload, segment=second, precision=tail),
    ]
    images = {
        name: _planes(workload.values[name]) for name in (*first.inputs, *second.inputs) if name not in first.outputs
    }

    def call() -> list[np.ndarray]:
        made = dict(zip(first.outputs, requests[0].run([images[name] for name in first.inputs]), strict=True))
        return _pixels(requests[1].run([made[name] if name in made else images[name] for name in second.inputs]))

    return call
