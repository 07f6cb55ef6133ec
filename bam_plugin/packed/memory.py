"""How much memory a packed network needs for a tile, from its graph: the maps that are alive at the same time."""

from __future__ import annotations

from bam_plugin.packed.graph import Graph, ValueType

_WORK_COPIES = 2.0  # a convolution pads (copies) what it reads, and adds its bias to a second copy of what it makes


def bytes_per_pixel(graph: Graph) -> int:
    """Bytes of float and sign maps alive at the worst moment, for one pixel of the input picture."""
    last_reader = {name: index for index, node in enumerate(graph.nodes) for name in node.inputs}
    last_reader[graph.output] = len(graph.nodes)
    worst = 0.0
    alive: dict[str, int] = {}
    for index, node in enumerate(graph.nodes):
        inputs = sum(_size(graph.types[name]) for name in node.inputs)
        made = _size(graph.types[node.output])
        alive.update({name: _size(graph.types[name]) for name in node.inputs})
        worst = max(worst, sum(alive.values()) + made + (_WORK_COPIES - 1) * (inputs + made))
        alive[node.output] = made
        alive = {name: size for name, size in alive.items() if last_reader.get(name, -1) > index}
    return round(worst)


def _size(value: ValueType) -> int:
    """Bytes of a value for one input pixel; signs are packed, but unpacked to floats on the slow path."""
    return value.channels * value.up**2 * 4
