"""What a damaged or hostile option file does is a named error, at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bam_plugin.config import OptionsError, read_options

LEVELS = 40  # with two references each: 2^40 values
ALIASES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{l: *a{n - 1}, r: *a{n - 1}}}\n" for n in range(1, LEVELS))
LISTS = "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, LEVELS))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, LEVELS))
TEXTS = "a0: xx\n" + "".join(f"a{n}: ${{a{n - 1}}}${{a{n - 1}}}\n" for n in range(1, LEVELS))
EMPTY_TEXTS = TEXTS.replace("a0: xx", "a0: ''")

HOSTILE = {
    "include empty": ("include:\n", "include takes a file"),
    "include number": ("include: 3\n", "include takes a file"),
    "include list": ("include: [[a]]\n", "include takes a file"),
    "list key": ("? [a, b]\n: 1\n", "a key must be a word"),
    "mapping key": ("train:\n  ? {a: b}\n  : 1\n", r"f\.yml:2: a key must be a word"),
    "aliases": (ALIASES, "more than 100,000 values"),
    "lists": (LISTS, "more than 100,000 values"),
    "merges": (MERGES, "more than 100,000 values"),
    "itself": ("a: &a [*a]\n", "refers to itself by an alias"),
    "itself as a mapping": ("a: &a {b: *a}\n", "refers to itself by an alias"),
    "texts": (TEXTS, "more than 65,536 characters"),
    "NUL": ("name: a\0b\n", "not valid YAML"),
    "NUL escaped": ('name: "a\\0b"\n', "no file name can have"),
    "NUL in a list": ('include: ["a\\0b"]\n', "no file name can have"),
    "NUL in a key": ('"a\\0b": 1\n', "no file name can have"),
    "half a pair": ('name: "\\ud800"\n', "no file name can have"),
    "deep": ("a: " + "[" * 5000 + "\n", "nested too deeply"),
    "date": ("a: 2026-13-45\n", "not valid YAML"),
    "tag": ("a: !!float x\n", "not valid YAML"),
    "digits": ("a: 1" + "0" * 5000 + "\n", "not valid YAML"),
    "empty": ("", "must be a YAML mapping"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_by_name_and_at_once(tmp_path: Path, name: str) -> None:
    text, message = HOSTILE[name]
    path = tmp_path / "f.yml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    start = time.process_time()
    with pytest.raises(OptionsError, match=message):
        read_options(path)
    assert time.process_time() - start < 5


def test_many_references_to_nothing_take_no_time(tmp_path: Path) -> None:
    path = tmp_path / "f.yml"
    path.write_text(EMPTY_TEXTS)
    assert read_options(path).values[f"a{LEVELS - 1}"] == ""


def test_a_forced_value_is_read_as_safely(tmp_path: Path) -> None:
    path = tmp_path / "f.yml"
    path.write_text("name: a\n")
    for value in ("2026-13-45", "[", '"\\0"'):
        with pytest.raises(OptionsError, match="--force_yml name="):
            read_options(path, force=[f"name={value}"])
