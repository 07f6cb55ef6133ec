"""The options of a network as one dataclass, which its constructor takes as keywords.

`@takes(VDSROptions)` above `__init__(self, options)` gives the class the keywords, types and defaults of VDSROptions:
`VDSR(num_layers=8)` works, `inspect.signature(VDSR)` shows every option, and the check of option files knows the
names, the types and the name next to a misspelt one.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

from bam_plugin.errors import suggest
from bam_plugin.nn.options import OptionError

Keywords = ParamSpec("Keywords")
Options = TypeVar("Options")


def takes(
    options_type: Callable[Keywords, Options],
) -> Callable[[Callable[[Any, Options], None]], Callable[Concatenate[Any, Keywords], None]]:
    """Let a constructor `__init__(self, options)` take the fields of the dataclass `options_type` as keywords.

    The constructor raises UnknownOptionError for a keyword that is no field.
    """
    fields = [field.name for field in dataclasses.fields(typing.cast(Any, options_type))]
    hints = typing.get_type_hints(options_type)
    parameters = [
        parameter.replace(annotation=hints[parameter.name])
        for parameter in inspect.signature(options_type).parameters.values()
    ]

    def decorate(constructor: Callable[[Any, Options], None]) -> Callable[Concatenate[Any, Keywords], None]:
        @functools.wraps(constructor)
        def construct(self: Any, **values: Any) -> None:
            for name in values:
                if name not in fields:
                    raise UnknownOptionError(f"{type(self).__name__} has no option {name!r}; {suggest(name, fields)}")
            constructor(self, typing.cast(Any, options_type)(**values))

        this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        construct.__signature__ = inspect.Signature([this, *parameters])  # type: ignore[attr-defined]
        construct.options_type = options_type  # type: ignore[attr-defined]
        construct.__annotations__ = {name: hints[name] for name in fields}
        return typing.cast(Any, construct)

    return decorate


class UnknownOptionError(OptionError, TypeError):
    """A network got a keyword that is none of its options."""


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """The options of every super-resolution network."""

    num_in_ch: int = 3
    """Channels of the input image."""
    num_out_ch: int = 3
    """Channels of the output image."""
    num_feat: int = 64
    """Channels of the body."""
    upscale: int = 4
    """Scale factor."""
    binary_parts: Sequence[str] = ()
    """Parts outside of the body that are binary, too. The network names its parts."""
