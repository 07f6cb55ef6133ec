"""The limits of a server: every one is a number that a request can meet."""

from __future__ import annotations

from dataclasses import dataclass

from bam_plugin.errors import BamError

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class ServeError(BamError):
    """The server cannot be started as asked."""


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Where a server listens, and what it takes. `token` is asked of every request where it is set."""

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    max_body_bytes: int = 64 << 20
    max_pixels: int = 64_000_000
    """Pixels of the largest picture that is taken."""
    max_result_pixels: int = 400_000_000
    max_waiting: int = 16
    """Jobs that wait for their turn; one more is answered with 429."""
    body_seconds: float = 60.0
    """Time that a client has to send its picture."""
    job_seconds: float = 600.0
    """Time that a job may compute."""
    keep_seconds: float = 900.0
    """Time that a result stays to be fetched."""
    keep_bytes: int = 2 << 30
    """Bytes of results that stay; the oldest ones go first."""
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.host not in LOOPBACK and not self.token:
            raise ServeError(
                f"{self.host} can be reached from other machines: a token is needed; leave --host out to serve this "
                "machine alone"
            )
