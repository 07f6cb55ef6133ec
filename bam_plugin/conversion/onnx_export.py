"""A packed graph as an ONNX model: the same network in float arithmetic, for every runtime that reads ONNX.

Signs become the floats -1 and +1 (or 0 and 1), and binary filters become float filters. So the model computes what the
packed kernels count, and only the rounding of float operations depends on the runtime. A threshold is one comparison x
>= t and a choice, so Sign(0) = +1 holds exactly. Zero padding is that of Conv. Dot products are rounded to the integers
that they are. Otherwise optimizers fold the scales into the filters, a 0 is no longer 0, and signs flip. Height and
width are free. To write a model needs the package onnx, to run it onnxruntime (extra `onnx`).
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bam_plugin.conversion.twins import TWINS, sign_values
from bam_plugin.errors import MissingDependencyError, install_command
from bam_plugin.packed.errors import ConversionError
from bam_plugin.packed.format import PackedModel
from bam_plugin.packed.graph import INPUT, Node

OPSET = 17
IR_VERSION = 8  # as old as the opset, so that runtimes of the last years read it
IMAGE, RESULT = "image", "upscaled"
_BITS = ".bits"  # behind the name of a threshold whose map has the values 0 and 1


def require(package: str) -> Any:
    """Import a package of the extra `onnx`, or raise MissingDependencyError that says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingDependencyError(
            f"ONNX needs the package {package}, which cannot be imported ({error}); run: {install_command('onnx')}"
        ) from error


class Export:
    """Collects ONNX nodes and constants while it walks the packed graph."""

    def __init__(self, *, onnx: Any, model: PackedModel, whole_dots: bool):
        self.onnx = onnx
        self.whole_dots = whole_dots
        self.model = model
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._known: set[str] = set()
        self.signs: dict[tuple[str, str], str] = {}  # (threshold, alphabet) -> its float map
        self._thresholds: dict[str, Node] = {}

    def constant(self, name: str, array: np.ndarray) -> str:
        """Keep an array under a name, once, and return the name."""
        if name not in self._known:
            self._known.add(name)
            self.constants.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def per_channel(self, name: str, array: np.ndarray) -> str:
        """A constant (C,) in the shape that serves every pixel."""
        return self.constant(name, array.reshape(-1, 1, 1))

    def add(self, op: str, inputs: Sequence[str], result: str, **attributes: Any) -> str:
        """Add an ONNX node that makes `result`, and return that name."""
        self.nodes.append(self.onnx.helper.make_node(op, list(inputs), [result], name=result, **attributes))
        return result

    def walk(self, nodes: Sequence[Node]) -> None:
        """Translate nodes of the packed graph in order of execution."""
        self._thresholds |= {node.name: node for node in nodes if node.op == "threshold"}
        for node in nodes:
            if node.op in TWINS:
                arrays = {role: self.model.tensors[tensor] for role, tensor in node.tensors.items()}
                TWINS[node.op].onnx(self, node, arrays, node.name)
            elif node.op != "threshold":  # the reader of a threshold makes its map, because it knows the alphabet
                raise ConversionError(f"{node.name}: the operation {node.op!r} has no ONNX form")

    def signs_of(self, conv: Node) -> str:
        """The float map that a binary convolution reads."""
        node, alphabet = self._thresholds[conv.inputs[0]], str(conv.attrs["alphabet"])
        if (node.name, alphabet) in self.signs:
            return self.signs[node.name, alphabet]
        name = node.name if alphabet == "-1,+1" else f"{node.name}{_BITS}"
        above, below = sign_values(node, self.model, alphabet)
        limit = self.per_channel(f"{node.name}.threshold", self.model.tensors[node.tensors["threshold"]])
        values = [self.per_channel(f"{name}.above", above), self.per_channel(f"{name}.below", below)]
        reached = self.add("GreaterOrEqual", [node.inputs[0], limit], f"{name}.reached")
        self.signs[node.name, alphabet] = self.add("Where", [reached, *values], name)
        return name

    def finish(self, inputs: Sequence[tuple[str, str]], outputs: Sequence[tuple[str, str]]) -> Any:
        """The checked model. Inputs and outputs are pairs (name, value of the packed graph)."""
        helper = self.onnx.helper

        def describe(name: str, value: str) -> Any:
            found = self.model.graph.types[value]
            suffix = "" if found.up == 1 else f"_x{found.up}"
            shape = ["batch", found.channels, f"height{suffix}", f"width{suffix}"]
            return helper.make_tensor_value_info(name, self.onnx.TensorProto.FLOAT, shape)

        described = [[describe(*item) for item in items] for items in (inputs, outputs)]
        made = helper.make_model(
            helper.make_graph(self.nodes, "bam_plugin", *described, self.constants),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="bam-plugin",
        )
        self.onnx.checker.check_model(made)
        return made


def export_onnx(model: PackedModel, *, signs: bool = False) -> bytes:
    """The ONNX file's bytes: `image` float32 (batch, C, height, width) -> `upscaled` (batch, C, H scale, W scale).

    With `signs` the float maps behind the thresholds are outputs, too. Equal models give equal bytes. Raises
    MissingDependencyError without the package onnx.
    """
    export = Export(onnx=require("onnx"), model=model, whole_dots=True)
    export.add("Identity", [IMAGE], INPUT)
    export.walk(model.graph.nodes)
    export.add("Identity", [model.graph.output], RESULT)
    observed = [(name, threshold) for (threshold, _), name in export.signs.items()] if signs else []
    made = export.finish([(IMAGE, INPUT)], [(RESULT, model.graph.output), *observed])
    facts = {"scale": model.scale, "packed_sha256": model.sha256, "network_g": model.metadata.get("network_g")}
    for key, value in facts.items():
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        made.metadata_props.add(key=key, value=text)
    return made.SerializeToString(deterministic=True)


def export_segment(
    model: PackedModel, nodes: Sequence[Node], *, inputs: Sequence[str], outputs: Sequence[str]
) -> bytes:
    """A part of a packed graph as an ONNX model whose inputs and outputs have the names of the graph.

    It is for the fastest run: optimizers may fold the scales into the filters.
    """
    export = Export(onnx=require("onnx"), model=model, whole_dots=False)
    export.walk(nodes)
    made = export.finish([(name, name) for name in inputs], [(name, name) for name in outputs])
    return made.SerializeToString(deterministic=True)


def make_session(data: bytes, *, threads: int = 0) -> Any:
    """A session of onnxruntime on the CPU. With 0 threads onnxruntime chooses their number."""
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")  # idle threads leave the processor to others
    return runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def onnx_runner(data: bytes, *, threads: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    """The model on onnxruntime's CPU: float32 (H, W, C) -> (H scale, W scale, C). With 0 threads it chooses."""
    session = make_session(data, threads=threads)
    return lambda image: _run(session, [RESULT], image)[0]


def observed_runner(model: PackedModel) -> Callable[[np.ndarray], tuple[np.ndarray, dict[str, np.ndarray]]]:
    """As `onnx_runner` with the export of `model`, and by threshold the bits (H, W, C), True where the value is low."""
    session = make_session(export_onnx(model, signs=True))
    names = [output.name for output in session.get_outputs()]

    def run(image: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        values = dict(zip(names, _run(session, names, image), strict=True))
        return values.pop(RESULT), {name.removesuffix(_BITS): value <= 0 for name, value in values.items()}

    return run


def _run(session: Any, names: Sequence[str], image: np.ndarray) -> list[np.ndarray]:
    pixels = np.ascontiguousarray(image.transpose(2, 0, 1)[None])
    return [value[0].transpose(1, 2, 0) for value in session.run(list(names), {IMAGE: pixels})]
