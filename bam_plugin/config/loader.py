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

from bam_plugin.config.problems import KeyPath, OptionsError
from bam_plugin.errors import suggest

_REFERENCE = re.compile(r"\$\{(\w+)\}")
_OUR_KEYS = ("include", "method", "methods")


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


def read_options(path: str | Path, *, method: str | None = None, force: Sequence[str] = ()) -> LoadedOptions:
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
    for key, value in forced:
        if key != ("method",):
            _set(values, key, value, path)
            origins[key] = "--force_yml"
    values["method"] = chosen
    expanded = {key: _substitute(value, values, path, (key,)) for key, value in values.items() if key not in _OUR_KEYS}
    abouts = {name: str(each.get("about", "")) for name, each in methods.items()}
    return LoadedOptions(path=path, values=expanded, origins=origins, method=chosen, methods=abouts, force=tuple(force))


def dump_options(loaded: LoadedOptions) -> str:
    """The expanded options as YAML for BasicSR's own parser, under a comment that names their source."""
    source = f"# Expanded from {loaded.path}"
    if loaded.method:
        source += f", method {loaded.method}"
    if loaded.force:
        # A line break inside an entry must not end the comment.
        source += ", --force_yml " + " ".join(" ".join(entry.split()) for entry in loaded.force)
    return source + "\n" + yaml.safe_dump(loaded.values, sort_keys=False, allow_unicode=True, width=120)


@dataclass
class _Layer:
    """The content of one file, or of several files of which later ones win."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)


def _read_with_includes(path: Path, stack: tuple[Path, ...]) -> _Layer:
    resolved = path.resolve()
    if resolved in stack:
        raise OptionsError(f"{path} includes itself through {' -> '.join(str(file) for file in stack)}")
    own = _read_file(path)
    includes = own.values.pop("include", [])
    merged = _Layer()
    for name in [includes] if isinstance(includes, str) else includes:
        included = path.parent / str(name)
        if not included.is_file():
            raise OptionsError(f"{own.origins[('include',)]}: include names {name}, but {included} is not a file")
        merged = _merge(merged, _read_with_includes(included, (*stack, resolved)))
    return _merge(merged, own)


def _method_layer(layer: _Layer, methods: dict[str, Any], chosen: Any, path: Path) -> _Layer:
    """The options of the method `chosen`, which win over the rest."""
    if chosen not in methods:
        offered = suggest(str(chosen), methods) if methods else "the file has no methods; remove it"
        raise OptionsError(f"{path}: method is {chosen!r}, which the file does not offer; {offered}")
    origins = {key[2:]: place for key, place in layer.origins.items() if key[:2] == ("methods", chosen)}
    return _Layer({key: value for key, value in methods[chosen].items() if key != "about"}, origins)


def _read_file(path: Path) -> _Layer:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise OptionsError(
            f"option file {path} does not exist; `bam options` lists the ones that come with bam_plugin, and "
            "`bam options --copy .` copies them"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise OptionsError(f"option file {path} cannot be read: {error}") from error
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise OptionsError(f"option file {path} must be a YAML mapping such as `name: BSRN_x4`")
        origins: dict[KeyPath, str] = {}
        shown = Path(os.path.normpath(path))
        return _Layer(_construct(loader, node, (), shown, origins), origins)
    except yaml.YAMLError as error:
        raise OptionsError(f"option file {path} is not valid YAML: {error}") from error
    finally:
        loader.dispose()


def _construct(loader: yaml.SafeLoader, node: yaml.Node, key: KeyPath, path: Path, origins: dict[KeyPath, str]) -> Any:
    """The value of a node. It notes the line of every key, and refuses keys that stand twice (YAML keeps the last)."""
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node, deep=True)
    seen: set[str] = set()
    for child, _ in node.value:
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


def _merge(base: _Layer, upper: _Layer) -> _Layer:
    values = _merge_values(base.values, upper.values)
    origins = {**base.origins, **upper.origins}
    return _Layer(values, {key: place for key, place in origins.items() if _has(values, key)})


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
        return key, yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise OptionsError(f"--force_yml {entry}: the value is not valid YAML: {error}") from error


def _set(values: dict[str, Any], key: KeyPath, value: Any, path: Path) -> None:
    for depth, name in enumerate(key[:-1], start=1):
        child = values.setdefault(name, {})
        if not isinstance(child, dict):
            raise OptionsError(
                f"--force_yml {':'.join(key)}: {'.'.join(key[:depth])} in {path} is {child!r}, not a mapping"
            )
        values = child
    values[key[-1]] = value


def _substitute(value: Any, top: Mapping[str, Any], path: Path, key: KeyPath, active: tuple[str, ...] = ()) -> Any:
    """`value` with the top-level value of `name` in place of every ${name}. `active`: names that are being replaced."""
    if isinstance(value, dict):
        return {name: _substitute(child, top, path, (*key, name), active) for name, child in value.items()}
    if isinstance(value, list):
        return [_substitute(child, top, path, key, active) for child in value]
    if not isinstance(value, str):
        return value

    def resolve(match: re.Match[str]) -> Any:
        name = match.group(1)
        found = top.get(name)
        if name in active or key == (name,):
            raise OptionsError(f"{path}: {'.'.join(key)} refers to itself by ${{{name}}}")
        if found is None or isinstance(found, (dict, list)):
            plain = [each for each, content in top.items() if isinstance(content, (str, int, float))]
            raise OptionsError(
                f"{path}: {'.'.join(key)} refers to ${{{name}}}, which is not a plain top-level value; "
                f"{suggest(name, plain)}"
            )
        return _substitute(found, top, path, key, (*active, name))

    whole = _REFERENCE.fullmatch(value)
    return resolve(whole) if whole else _REFERENCE.sub(lambda match: str(resolve(match)), value)
