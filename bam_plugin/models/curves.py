"""The curves for TensorBoard are no reason to lose a training: a full disk switches them off."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

LOGGER = logging.getLogger("basicsr")


class ForgivingWriter:
    """A TensorBoard writer whose methods do nothing after one of them has failed on the file system."""

    def __init__(self, *, writer: Any) -> None:
        self._writer = writer
        self._failed = False

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*args: Any, **kwargs: Any) -> None:
            if self._failed:
                return
            try:
                getattr(self._writer, name)(*args, **kwargs)
            except OSError as error:
                self._failed = True
                LOGGER.warning(f"The curves for TensorBoard end here, they cannot be written: {error}.")

        return call
