"""A real server of the application in a thread of the test's process."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn

from bam_plugin.serve.app import create_app
from bam_plugin.serve.jobs import JobBoard
from bam_plugin.serve.settings import ServeSettings


@dataclass(frozen=True)
class RunningServer:
    """Where it listens, and its inner parts for the test to look at."""

    address: str
    board: JobBoard


@contextlib.contextmanager
def running(**settings: Any) -> Iterator[RunningServer]:
    """Serve on a free port of this machine within the block."""
    app = create_app(ServeSettings(threads=1, **settings))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline, "the server did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield RunningServer(f"http://127.0.0.1:{port}", app.state.board)
    finally:
        server.should_exit = True
        thread.join(30)
