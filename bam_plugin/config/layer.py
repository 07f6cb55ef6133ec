"""One YAML file as values with the line of every key. What a hostile or damaged file does is a named error."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bam_plugin.config.problems import KeyPath, OptionsError

MAX_VALUES = 100_000
"""Values of a file with its aliases written out: a few short lines can ask for any number."""


@dataclass
class Layer:
    """The content of one file, or of several files of which later ones win."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)
    """Key path -> `file:line`."""


def read_layer(path: Path) -> Layer:
    """Read one file. Raises OptionsError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise OptionsError(
            f"option file {path} does not exist; `bam options` lists the ones that come with bam_plugin, and "
            "`bam options --copy .` copies them"
        ) from error
    except (OSError, ValueError) as error:
        raise OptionsError(f"option file {path} cannot be read: {error}") from error
    origins: dict[KeyPath, str] = {}
    try:
        values = _parse(text, Path(os.path.normpath(path)), origins)
    except _InvalidYAML as error:
        raise OptionsError(f"option file {path} {error}") from error
    if not isinstance(values, dict):
        raise OptionsError(f"option file {path} must be a YAML mapping such as `name: BSRN_x4`")
    return Layer(values, origins)


def parse_value(text: str) -> Any:
    """The value that `text` is in YAML. Raises OptionsError."""
    try:
        return _parse(text, Path("text"), {})
    except _InvalidYAML as error:
        raise OptionsError(str(error)) from error


class _InvalidYAML(Exception):
    """A text is not what an option file can hold; the message goes on from the file's name."""


def _parse(text: str, path: Path, origins: dict[KeyPath, str]) -> Any:
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _count_values(node, {}) > MAX_VALUES:
                raise _InvalidYAML(f"holds more than {MAX_VALUES:,} values; write fewer aliases")
            return _construct(loader, node, (), path, origins)
        finally:
            loader.dispose()
    except RecursionError:
        raise _InvalidYAML("is nested too deeply") from None
    # ValueError: a date, a number or a text that only looks like one.
    except (yaml.YAMLError, ValueError) as error:
        raise _InvalidYAML(f"is not valid YAML: {error}") from error


def _count_values(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Values below a node, those behind aliases counted as often as they are named. Takes one look at each."""
    if id(node) in known:
        count = known[id(node)]
        if count is None:
            raise _InvalidYAML(f"refers to itself by an alias in line {node.start_mark.line + 1}")
        return count
    known[id(node)] = None
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [each for pair in node.value for each in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    known[id(node)] = count = 1 + sum(_count_values(child, known) for child in children)
    return count


def _construct(loader: yaml.SafeLoader, node: yaml.Node, key: KeyPath, path: Path, origins: dict[KeyPath, str]) -> Any:
    """The value of a node. It notes the line of every key, and refuses keys that stand twice (YAML keeps the last)."""
    if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        return [_construct(loader, child, key, path, {}) for child in node.value]
    if not isinstance(node, yaml.MappingNode):
        value = loader.construct_object(node, deep=True)
        if isinstance(value, str):
            _check_text(value, node, path)
        return value
    seen: set[str] = set()
    for child, _ in node.value:
        if not isinstance(child, yaml.ScalarNode):
            raise OptionsError(f"{path}:{child.start_mark.line + 1}: a key must be a word, found a list or a mapping")
        _check_text(child.value, child, path)
        # A mapping may override what `<<` merges in. A key that the mapping itself has twice is a mistake.
        if child.tag != "tag:yaml.org,2002:merge" and child.value in seen:
            where = f"{path}:{child.start_mark.line + 1}"
            raise OptionsError(f"{where}: {'.'.join((*key, child.value))} is given twice; keep one")
        seen.add(child.value)
    loader.flatten_mapping(node)
    values: dict[str, Any] = {}
    for child, value_node in node.value:
        name = str(loader.construct_object(child, deep=True))
        child_key = (*key, name)
        origins[child_key] = f"{path}:{child.start_mark.line + 1}"
        values[name] = _construct(loader, value_node, child_key, path, origins)
    return values


def _check_text(text: str, node: yaml.Node, path: Path) -> None:
    """No file name, and no printed line, can hold NUL or half a surrogate pair."""
    if "\0" in text or any(0xD800 <= ord(character) < 0xE000 for character in text):
        raise OptionsError(f"{path}:{node.start_mark.line + 1}: {text!r} has a character that no file name can have")
