"""The picture of a request as a file: the raw body, or the field `file` of a form; bounded in bytes and in time."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path, PurePosixPath, PureWindowsPath

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from bam_plugin.errors import BamError

_NAME_LENGTH = 120


class UploadError(BamError):
    """A request brings no picture. `status` is the code of the answer."""

    def __init__(self, message: str, *, status: int = 400):
        super().__init__(message)
        self.status = status


async def save_upload(request: Request, path: Path, *, max_bytes: int, seconds: float) -> str:
    """Write the picture that the request brings to `path`; returns its own name, without folders.

    Raises UploadError where there is none, where it is larger than `max_bytes`, or where it takes too long.
    """
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    _count_received(request, max_bytes)
    form = request.headers.get("content-type", "").startswith("multipart/form-data")
    try:
        name = await asyncio.wait_for(_save_form(request, path) if form else _save_body(request, path), seconds)
    except asyncio.TimeoutError as error:
        raise UploadError(f"the picture was not there after {seconds:g} seconds", status=408) from error
    if path.stat().st_size == 0:
        raise UploadError("no bytes were sent; send those of a picture, raw or in a form's field named file")
    return plain_name(name)


async def _save_body(request: Request, path: Path) -> str:
    with path.open("wb") as file:
        async for chunk in request.stream():
            file.write(chunk)
    return request.headers.get("x-file-name", "picture")


async def _save_form(request: Request, path: Path) -> str:
    try:
        form = await request.form(max_files=1, max_fields=8)
    except MultiPartException as error:
        raise UploadError(f"the form cannot be read: {error.message}") from error
    try:
        part = form.get("file")
        if not isinstance(part, UploadFile):
            raise UploadError("the form has no file in a field named file")
        with path.open("wb") as file:
            await asyncio.to_thread(shutil.copyfileobj, part.file, file)
        return part.filename or "picture"
    finally:
        await form.close()


def plain_name(name: str) -> str:
    """A file name for people from whatever a client sends: no folders, no control characters, not too long."""
    base = PureWindowsPath(PurePosixPath(name).name).name
    shown = "".join(letter for letter in base if letter.isprintable()).strip(". ")
    return shown[-_NAME_LENGTH:] or "picture"


def _count_received(request: Request, max_bytes: int) -> None:
    """Let reading of the body fail behind `max_bytes`, whatever the header said."""
    receive, total = request._receive, 0

    async def counted() -> dict:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > max_bytes:
            raise _too_large(max_bytes)
        return dict(message)

    request._receive = counted


def _too_large(max_bytes: int) -> UploadError:
    return UploadError(f"the body may have {max_bytes} bytes, and has more", status=413)
