"""`bam serve`: a local page to drop photos on, and a REST API."""

from __future__ import annotations

import argparse
import importlib
import secrets
import sys

from bam_plugin.errors import MissingDependencyError, install_command
from bam_plugin.serve.settings import LOOPBACK, ServeSettings


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add, limits = parser.add_argument, ServeSettings()
    add("--host", default=limits.host, help="address to listen at (default: %(default)s, this machine alone)")
    add("--port", type=int, default=limits.port, help="(default: %(default)s)")
    add("--token", help="secret that every request must bring; one is made up where --host needs one")
    add("-j", "--threads", type=int, help="threads of the network (default: all processors)")
    add("--max-megapixels", type=float, default=limits.max_pixels / 1e6, help="of a picture (default: %(default)g)")
    add("--max-megabytes", type=float, default=limits.max_body_bytes / 2**20, help="of a body (default: %(default)g)")
    add("--max-waiting", type=int, default=limits.max_waiting, help="jobs in the queue (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    try:
        uvicorn = importlib.import_module("uvicorn")
        app = importlib.import_module("bam_plugin.serve.app")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"bam serve needs {error.name}, which is not installed; run: {install_command('serve')}"
        ) from error
    token = args.token or (None if args.host in LOOPBACK else secrets.token_urlsafe(18))
    settings = ServeSettings(
        host=args.host,
        port=args.port,
        token=token,
        threads=args.threads,
        max_pixels=round(args.max_megapixels * 1e6),
        max_body_bytes=round(args.max_megabytes * 2**20),
        max_waiting=args.max_waiting,
    )
    shown = f"[{args.host}]" if ":" in args.host else args.host
    sys.stderr.write(f"http://{shown}:{args.port}/{'?token=' + token if token else ''}   (Ctrl-C ends)\n")
    uvicorn.run(
        app.create_app(settings),
        host=args.host,
        port=args.port,
        log_level="warning",
        timeout_keep_alive=20,
        server_header=False,
    )
    return 0
