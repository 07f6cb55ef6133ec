"""Values of the packed graph, and the emitter that adds nodes to it, for the lowering of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bam_plugin.mixed.activation_steps import finite_array
from bam_plugin.packed.errors import ConversionError
from bam_plugin.packed.graph_builder import GraphBuilder


@dataclass(frozen=True)
class Value:
    """A value of the packed graph. Everything else is a Python object or a tensor that is known already."""

    name: str


@dataclass(frozen=True)
class Magnitude:
    """|value|. It exists only inside a channel mean."""

    value: Value


class Emitter:
    """A GraphBuilder that knows which layer is at work."""

    def __init__(self, *, num_in_ch: int):
        self.builder = GraphBuilder(num_in_ch=num_in_ch)
        self.where = ""  # for names and messages: the module, or its call
        self.layer = ""  # the module at work
        self.layers: dict[str, str] = {}  # node of the graph -> its layer
        self.notes: dict[str, str] = {}  # layer -> what the report says of it

    def add(
        self,
        op: str,
        *inputs: Value,
        name: str | None = None,
        attrs: dict[str, Any] | None = None,
        tensors: dict[str, np.ndarray] | None = None,
    ) -> Value:
        """Add a node. Its name is `name`, or that of the place at work."""
        names = (value.name for value in inputs)
        made = self.builder.add(op, name or self.where, *names, attrs=attrs, tensors=tensors)
        self.layers[made] = self.layer
        return Value(made)

    def channels(self, value: Value) -> int:
        """Channels of a value."""
        return self.builder.types[value.name].channels

    def per_channel(self, constant: Any, value: Value) -> np.ndarray:
        """A constant operand as one float32 per channel of `value`."""
        channels = self.channels(value)
        array = finite_array(torch.as_tensor(constant), self.where)
        if array.size != 1 and (array.size != channels or array.shape[-3:] != (channels, 1, 1)):
            raise ConversionError(f"{self.where}: a constant of shape {array.shape} does not fit {channels} channels")
        return np.broadcast_to(array.reshape(-1), (channels,))
