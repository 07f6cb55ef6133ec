"""Check the keys that choose binarizers, in a network section of ours and in a recipe.

Names come from the tables of `bam_plugin.nn`; the keys of `weight_options` and `activation_options` are the keywords of
the binarizer that the method, or the key that replaces one side of it, chooses.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from bam_plugin.config.problems import KeyPath, Problem
from bam_plugin.config.signatures import check_call
from bam_plugin.errors import suggest


def check_binarizers(values: Mapping[str, Any], target: Any, key: KeyPath) -> Iterator[Problem]:
    """Check the method, its two binarizers and their options among `values`, keywords of `target`.

    Yields nothing if `target` takes no binarizer, or if `values` choose none (a network in full precision). check_call
    finds values of wrong types.
    """
    from bam_plugin.nn import ACTIVATION_BINARIZERS, METHODS, WEIGHT_BINARIZERS

    parameters = inspect.signature(target).parameters
    if "binarizer" not in parameters:
        return
    name = values.get("binarizer", parameters["binarizer"].default)
    if not isinstance(name, str):
        return
    if name not in METHODS:
        yield Problem((*key, "binarizer"), f"{name!r} is no binarizer; {suggest(str(name), METHODS)}")
    sides: dict[str, Mapping[str, Any]] = {"weight": WEIGHT_BINARIZERS, "activation": ACTIVATION_BINARIZERS}
    for side, table in sides.items():
        choice = values.get(f"{side}_binarizer")
        if choice is not None and not isinstance(choice, str):
            continue
        if choice is not None and choice not in table:
            place = (*key, f"{side}_binarizer")
            yield Problem(place, f"{choice!r} is no binarizer of {side}s; {suggest(str(choice), table)}")
            continue
        if choice is None and name in METHODS:
            choice = getattr(METHODS[name], side)
        options = values.get(f"{side}_options")
        if choice is not None and isinstance(options, Mapping) and f"{side}_options" in parameters:
            yield from _check_options(table[choice], options, (*key, f"{side}_options"))


def _check_options(binarizer: Any, options: Mapping[str, Any], key: KeyPath) -> Iterator[Problem]:
    from bam_plugin.nn.options import FILLED_IN

    problems = list(check_call(binarizer, options, key, given=tuple(FILLED_IN)))
    yield from problems
    if problems:
        return
    given = {name: value for name, value in FILLED_IN.items() if name in inspect.signature(binarizer).parameters}
    try:
        binarizer(**given, **options)
    except (TypeError, ValueError) as error:
        yield Problem(key, str(error))
