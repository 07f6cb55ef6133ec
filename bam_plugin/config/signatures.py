"""Check values against types, and mappings with a `type` against the signature of what has that name."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from bam_plugin.config.problems import KeyPath, Problem
from bam_plugin.errors import nearest, suggest


def check_value(value: Any, expected: Any, key: KeyPath, default: Any = None) -> Iterator[Problem]:
    """Check one value against a type, or against a default value if msgspec does not know the type."""
    if isinstance(value, float) and value.is_integer():
        # `!!float 5e3` for an iteration count is BasicSR's habit, and works.
        value = int(value)
    try:
        msgspec.convert(value, expected)
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at ")
        inner = place.strip("`$") or ""
        at = f" (at {inner})" if inner else ""
        choices = [choice for choice in _choices(expected) if isinstance(choice, str)]
        if choices and isinstance(value, str):
            yield Problem(key, f"{value!r} is no valid value{at}; valid here: {', '.join(choices)}")
        else:
            yield Problem(key, f"{text[0].lower()}{text[1:]}, found {value!r}{at}{_number_hint(value)}")
    except TypeError:
        yield from _check_like(value, default, key)


def check_struct(
    values: Mapping[str, Any],
    struct: type[msgspec.Struct],
    key: KeyPath,
    *,
    also: Collection[str] = (),
    elsewhere: Callable[[str], str | None] = lambda name: None,
) -> Iterator[Problem]:
    """Check a section key by key. `also`: further valid keys; `elsewhere`: name -> the section where it is valid."""
    fields = {field.name: field for field in msgspec.structs.fields(struct)}
    for name, value in values.items():
        if name not in fields:
            if name not in also:
                yield unknown_key((*key, name), {*fields, *also}, elsewhere)
            continue
        inner = _struct_in(fields[name].type)
        if inner is not None and isinstance(value, Mapping):
            yield from check_struct(value, inner, (*key, name), elsewhere=elsewhere)
        else:
            yield from check_value(value, fields[name].type, (*key, name))
    for name, field in fields.items():
        if field.required and name not in values:
            yield Problem((*key, name), "is missing and has no default; add it")


def unknown_key(key: KeyPath, names: Iterable[str], elsewhere: Callable[[str], str | None]) -> Problem:
    """The problem of a key that nothing reads. It is misplaced, misspelt or invented."""
    place = elsewhere(key[-1])
    if place is not None and place != ".".join(key[:-1]):
        return Problem(key, f"is not read here; it belongs to {place or 'the top of the file'}")
    return Problem(key, f"unknown key, which nothing reads; {suggest(key[-1], names)}")


def check_typed(
    values: Any,
    key: KeyPath,
    known: Mapping[str, Any],
    *,
    given: Collection[str] = (),
    also: Collection[str] = (),
    swallowed: bool = False,
    elsewhere: Callable[[str], str | None] = lambda name: None,
) -> Iterator[Problem]:
    """Check a mapping `{type: NAME, ...}`: NAME must be in `known`, the rest must fit the signature of known[NAME].

    given: parameters that the caller supplies itself. also: keys that are read by others. swallowed: a `**kwargs` of
    the callable only ignores what it gets, so a key that lands there is a mistake.
    """
    if not isinstance(values, Mapping):
        yield Problem(key, f"must be a mapping with a type, found {values!r}")
        return
    name = values.get("type")
    if not isinstance(name, str):
        yield Problem((*key, "type"), f"must name one of the registered types, found {name!r}; {suggest('', known)}")
        return
    if name not in known:
        yield Problem((*key, "type"), f"{name} is not registered; {suggest(name, known)}")
        return
    arguments = {each: value for each, value in values.items() if each != "type" and each not in also}
    yield from check_call(known[name], arguments, key, given=given, swallowed=swallowed, elsewhere=elsewhere)


def check_call(
    target: Any,
    arguments: Mapping[str, Any],
    key: KeyPath,
    *,
    given: Collection[str] = (),
    swallowed: bool = False,
    elsewhere: Callable[[str], str | None] = lambda name: None,
) -> Iterator[Problem]:
    """Check keyword arguments against the signature of `target`; given, swallowed: see check_typed."""
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(target).parameters.items()
        if name not in given and parameter.kind is not inspect.Parameter.VAR_POSITIONAL
    }
    keywords = [name for name, parameter in parameters.items() if parameter.kind is inspect.Parameter.VAR_KEYWORD]
    open_ended = bool(keywords) and not swallowed
    names = set(parameters) - set(keywords)
    hints = _hints(target)
    for name, value in arguments.items():
        if name not in names:
            # If a **kwargs takes anything, only a name close to a real one is surely a mistake.
            if not open_ended or nearest(name, names) is not None:
                yield unknown_key((*key, name), names, elsewhere)
        elif name in hints:
            yield from check_value(value, hints[name], (*key, name), parameters[name].default)
        else:
            yield from _check_like(value, parameters[name].default, (*key, name))
    for name in names - set(arguments):
        if parameters[name].default is inspect.Parameter.empty:
            yield Problem((*key, name), f"is missing and has no default in {target.__name__}; add it")


def _choices(annotation: Any) -> tuple[Any, ...]:
    """The values of a Literal, also of one that is an alternative among others; none for other types."""
    if typing.get_origin(annotation) is typing.Literal:
        return typing.get_args(annotation)
    alternatives = (
        typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else ()
    )
    return tuple(choice for each in alternatives for choice in _choices(each))


def _check_like(value: Any, default: Any, key: KeyPath) -> Iterator[Problem]:
    """Without a type hint the default value says what is expected: a number, a text or a switch."""
    if isinstance(default, bool):
        if not isinstance(value, bool):
            yield Problem(key, f"expected true or false, found {value!r}")
    elif isinstance(value, str) and (isinstance(default, (int, float)) or _as_number(value) is not None):
        yield Problem(key, f"expected a number, found the text {value!r}{_number_hint(value)}")


def _hints(target: Any) -> dict[str, Any]:
    # The fields that a dataclass inherits have their types resolved where they are declared.
    holder = target.__init__ if inspect.isclass(target) and not dataclasses.is_dataclass(target) else target
    try:
        return typing.get_type_hints(holder, include_extras=True)
    except Exception:
        # Some hints do not resolve: their names are imported for type checkers only. A file is not refused for that.
        return {}


def _struct_in(annotation: Any) -> type[msgspec.Struct] | None:
    """The Struct in `Struct` or `Struct | None`."""
    for candidate in (annotation, *typing.get_args(annotation)):
        if inspect.isclass(candidate) and issubclass(candidate, msgspec.Struct):
            return candidate
    return None


def _as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _number_hint(value: Any) -> str:
    if not isinstance(value, str) or _as_number(value) is None:
        return ""
    mantissa, letter, exponent = value.strip().lower().partition("e")
    if not letter:
        return f"; write {value} without quotes"
    mantissa = mantissa if "." in mantissa else mantissa + ".0"
    sign = "" if exponent[:1] in "+-" else "+"
    return f"; YAML reads {value} as text: write {mantissa}e{sign}{exponent}"
