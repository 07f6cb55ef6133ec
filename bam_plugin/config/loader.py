"""Read option files: YAML with two additions, expanded to the YAML that BasicSR's parser reads.

    include: ../../base/train_div2k.yml    one file or a list, relative to this one; later files win, this one wins last
    method: bam                            the one of `methods` whose options win over the rest
    methods: {bam: {about: "...", network_g: {...}}, bnn: {...}}

A text may hold `${scale}`, `${method}`, `${name}` or any other plain top-level value; if the text is nothing else,
the value keeps its type. Mappings merge key by key. But a mapping with another `type` replaces the earlier mapping, so
the settings of one scheduler do not stay for the next.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bam_plugin.config.layer import Layer, parse_value, read_layer
from bam_plugin.config.lengths import shorten_schedule
from bam_plugin.config.problems import KeyPath, OptionsError
from bam_plugin.errors import suggest

_REFERENCE = re.compile(r"\$\{(\w+)\}")
_OUR_KEYS = ("include", "method", "methods")
IMPORT_KEY = "import"
"""Key of the modules that register what the file names. BasicSR ignores it, so it stays in an expanded file."""
MAX_TEXT = 1 << 16
"""Characters of a text with its references replaced: a few short lines can ask for any length."""


@dataclass
class LoadedOptions:
    """An expanded option file."""

    path: Path
    """The file that was named, without its includes."""
    values: dict[str, Any]
    """The options for BasicSR's parser: plain values, without include, method and methods."""
    origins: dict[KeyPath, str] = field(repr=False)
    """Key path -> `file:line`."""
    method: str | None = None
    """The chosen method, or None if the file has no methods."""
    methods: dict[str, str] = field(default_factory=dict)
    """Method of the file -> what it reproduces."""
    force: tuple[str, ...] = ()
    """The `--force_yml` entries that were applied."""
    notes: list[str] = field(default_factory=list)
    """What was changed beyond that, for a person."""

    @property
    def imports(self) -> list[str]:
        """Modules, or Python files, that register what the options name. Raises OptionsError for another value."""
        value = self.values.get(IMPORT_KEY) or []
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            place = self.origins.get((IMPORT_KEY,), self.path)
            raise OptionsError(f"{place}: import takes a module, a Python file or a list of them, found {value!r}")
        return names


def read_options(path: str | os.PathLike, *, method: str | None = None, force: Sequence[str] = ()) -> LoadedOptions:
    """Read and expand an option file, without checking its content.

    `method` overrides the file's own; `force` are BasicSR's `--force_yml` entries, `key:key=value` with a YAML value,
    which win over everything. Raises OptionsError for a missing or malformed file, include, method, entry or reference.
    """
    path = Path(path)
    layer = _read_with_includes(path, ())
    forced = [_parse_forced(entry) for entry in force]
    chosen = dict(forced).get(("method",), layer.values.get("method") if method is None else method)
    methods = layer.values.get("methods") or {}
    if not isinstance(methods, dict) or not all(isinstance(each, dict) for each in methods.values()):
        raise OptionsError(f"{path}: methods must map names to mappings of options, found {methods!r}")
    if chosen is not None:
        layer = _merge(layer, _method_layer(layer, methods, chosen, path))
    elif methods:
        raise OptionsError(f"{path} offers methods; name one, such as method: {next(iter(methods))}")
    values, origins = layer.values, layer.origins
    notes = shorten_schedule(values, dict(forced))
    for key, value in forced:
        if key != ("method",):
            _set(values, key, value, path)
            origins[key] = "--force_yml"
    values["method"] = chosen
    references = _References(top=values, path=path)
    expanded = {key: references.replace(value, (key,)) for key, value in values.items() if key not in _OUR_KEYS}
    abouts = {name: str(each.get("about", "")) for name, each in methods.items()}
    return LoadedOptions(
        path=path, values=expanded, origins=origins, method=chosen, methods=abouts, force=tuple(force), notes=notes
    )


def dump_options(loaded: LoadedOptions) -> str:
    """The expanded options as YAML for BasicSR's own parser, under a comment that names their source."""
    source = f"# Expanded from {loaded.path}"
    if loaded.method:
        source += f", method {loaded.method}"
    if loaded.force:
        # A line break inside an entry must not end the comment.
        source += ", --force_yml " + " ".join(" ".join(entry.split()) for entry in loaded.force)
    return source + "\n" + yaml.safe_dump(loaded.values, sort_keys=False, allow_unicode=True, width=120)


def _read_with_includes(path: Path, stack: tuple[Path, ...]) -> Layer:
    resolved = path.resolve()
    if resolved in stack:
        raise OptionsError(f"{path} includes itself through {' -> '.join(str(file) for file in stack)}")
    own = read_layer(path)
    includes = own.values.pop("include", [])
    includes = includes if isinstance(includes, list) else [includes]
    merged = Layer()
    for name in includes:
        if not isinstance(name, str):
            place = own.origins[("include",)]
            raise OptionsError(
                f"{place}: include takes a file or a list of files, found {name!r}; name them or remove it"
            )
        included = path.parent / name
        if not included.is_file():
            raise OptionsError(f"{own.origins[('include',)]}: include names {name}, but {included} is not a file")
        merged = _merge(merged, _read_with_includes(included, (*stack, resolved)))
    return _merge(merged, own)


def _method_layer(layer: Layer, methods: dict[str, Any], chosen: Any, path: Path) -> Layer:
    """The options of the method `chosen`, which win over the rest."""
    if chosen not in methods:
        offered = suggest(str(chosen), methods) if methods else "the file has no methods; remove it"
        raise OptionsError(f"{path}: method is {chosen!r}, which the file does not offer; {offered}")
    origins = {key[2:]: place for key, place in layer.origins.items() if key[:2] == ("methods", chosen)}
    return Layer({key: value for key, value in methods[chosen].items() if key != "about"}, origins)


def _merge(base: Layer, upper: Layer) -> Layer:
    values = _merge_values(base.values, upper.values)
    origins = {**base.origins, **upper.origins}
    return Layer(values, {key: place for key, place in origins.items() if _has(values, key)})


def _merge_values(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in layer.items():
        current = merged.get(key)
        if not isinstance(value, Mapping):
            merged[key] = value
        elif not isinstance(current, Mapping) or ("type" in value and value["type"] != current.get("type")):
            merged[key] = _merge_values({}, value)
        else:
            merged[key] = _merge_values(current, value)
    return merged


def _has(values: Any, key: KeyPath) -> bool:
    for name in key:
        if not isinstance(values, Mapping) or name not in values:
            return False
        values = values[name]
    return True


def _parse_forced(entry: str) -> tuple[KeyPath, Any]:
    keys, separator, text = entry.partition("=")
    key = tuple(name.strip() for name in keys.split(":"))
    if not separator or not all(key):
        raise OptionsError(f"--force_yml takes key:key=value such as train:total_iter=1000, found {entry!r}")
    if text.strip().lower() == "none":
        return key, None
    try:
        return key, parse_value(text)
    except OptionsError as error:
        raise OptionsError(f"--force_yml {entry}: the value {error}") from error


def _set(values: dict[str, Any], key: KeyPath, value: Any, path: Path) -> None:
    for depth, name in enumerate(key[:-1], start=1):
        child = values.setdefault(name, {})
        if not isinstance(child, dict):
            raise OptionsError(
                f"--force_yml {':'.join(key)}: {'.'.join(key[:depth])} in {path} is {child!r}, not a mapping"
            )
        values = child
    values[key[-1]] = value


class _References:
    """Replaces every ${name} in a file by the top-level value of that name."""

    def __init__(self, *, top: Mapping[str, Any], path: Path) -> None:
        self._top = top
        self._path = path
        self._done: dict[str, Any] = {}
        self._active: list[str] = []

    def replace(self, value: Any, key: KeyPath) -> Any:
        """`value`, which stands at `key`, without references. Raises OptionsError."""
        if isinstance(value, dict):
            return {name: self.replace(child, (*key, name)) for name, child in value.items()}
        if isinstance(value, list):
            return [self.replace(child, key) for child in value]
        if not isinstance(value, str):
            return value
        whole = _REFERENCE.fullmatch(value)
        if whole:
            return self._value(whole.group(1), key)
        text = _REFERENCE.sub(lambda match: str(self._value(match.group(1), key)), value)
        if len(text) > MAX_TEXT:
            raise OptionsError(
                f"{self._path}: {'.'.join(key)} has more than {MAX_TEXT:,} characters with its references"
            )
        return text

    def _value(self, name: str, key: KeyPath) -> Any:
        if name in self._active or key == (name,):
            raise OptionsError(f"{self._path}: {'.'.join(key)} refers to itself by ${{{name}}}")
        found = self._top.get(name)
        if found is None or isinstance(found, (dict, list)):
            plain = [each for each, content in self._top.items() if isinstance(content, (str, int, float))]
            raise OptionsError(
                f"{self._path}: {'.'.join(key)} refers to ${{{name}}}, which is not a plain top-level value; "
                f"{suggest(name, plain)}"
            )
        if name not in self._done:
            self._active.append(name)
            self._done[name] = self.replace(found, key)
            self._active.pop()
        return self._done[name]
