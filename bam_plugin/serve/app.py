"""The web application: the API under /v1, the page, health and metrics.

A picture is sent to `POST /v1/upscale`, which answers with the larger one, or to `POST /v1/jobs`, which answers at once
with a job to be watched, fetched and cancelled. Both check the picture's header before they queue it. No request names
a file of the server: networks are those of the zoo, pictures come and go as bodies.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException as HTTPError
from starlette.middleware.trustedhost import TrustedHostMiddleware

from bam_plugin import __version__
from bam_plugin.errors import BamError
from bam_plugin.packed.format import read_model
from bam_plugin.packed.zoo import DEFAULT_NETWORK, UnknownModelError, find_model, list_models
from bam_plugin.pictures.errors import PictureTooLargeError, UnknownPictureError, UnsupportedPictureError
from bam_plugin.pictures.formats import written_formats
from bam_plugin.pictures.read import probe_picture
from bam_plugin.pictures.write import DEFAULT_QUALITY
from bam_plugin.serve.answers import Health, JobFacts, ModelFacts, Refusal, refusal
from bam_plugin.serve.guard import Guard
from bam_plugin.serve.jobs import Job, JobBoard, QueueFullError
from bam_plugin.serve.metrics import Metrics
from bam_plugin.serve.settings import LOOPBACK, ServeSettings
from bam_plugin.serve.uploads import UploadError, save_upload
from bam_plugin.upscale.slider_page import DIVIDER
from bam_plugin.upscale.targets import target_size
from bam_plugin.upscale.upscaler import MAX_SCALE

PAGE = Path(__file__).parent / "page"
_WATCH_SECONDS = 0.25  # between two looks at a job's progress, and at whether its client is still there
_MEDIA = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}


class UpscaleOptions:
    """What a request asks for its picture, in the query."""

    def __init__(
        self,
        model: Annotated[str, Query(description="a network of GET /v1/models")] = DEFAULT_NETWORK,
        scale: Annotated[float | None, Query(gt=0, le=MAX_SCALE, description="magnification")] = None,
        format: Annotated[Literal["png", "jpg", "webp"], Query(description="format of the result")] = "png",
        quality: Annotated[int, Query(ge=1, le=100, description="of jpg and webp")] = DEFAULT_QUALITY,
    ):
        self.model, self.scale, self.format, self.quality = model, scale, format, quality


assert set(_MEDIA) <= set(written_formats())


def create_app(settings: ServeSettings) -> FastAPI:
    """The application, ready for any ASGI server. Its worker starts and ends with it."""
    metrics = Metrics()
    board = JobBoard(settings=settings, finished=metrics.note)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        board.start()
        try:
            yield
        finally:
            await asyncio.to_thread(board.stop)

    app = FastAPI(
        title="bam_plugin",
        version=__version__,
        description="Enlarges pictures by a binary network, on this machine.",
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        openapi_url="/v1/openapi.json",
    )
    app.state.board, app.state.metrics = board, metrics
    if settings.host in LOOPBACK:
        # A page of elsewhere must not reach this server by a name of its own that points here.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]", "testserver"])
    app.add_middleware(Guard, token=settings.token)
    for error in (BamError, HTTPError):
        app.add_exception_handler(error, _answer_error)
    _add_api(app, board, settings)
    app.mount("/divider", StaticFiles(directory=DIVIDER))
    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPError):  # ours, and those of the libraries beneath: forms, static files
        return refusal(error.status_code, "HTTPError", str(error.detail))
    status = {
        QueueFullError: 429,
        UnknownModelError: 404,
        PictureTooLargeError: 413,
        UnknownPictureError: 415,
        UnsupportedPictureError: 415,
    }.get(type(error), getattr(error, "status", 400))
    return refusal(status, type(error).__name__, str(error), {"Retry-After": "2"} if status == 429 else None)


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"model": Refusal, "description": text}
    for code, text in {
        400: "the picture or the form cannot be used",
        401: "the token is missing or wrong",
        403: "asked by a page of another site",
        404: "there is no such network or job",
        408: "the picture was not sent in time",
        409: "the job has no result",
        413: "the picture, or its result, is too large",
        415: "not a picture that can be read",
        429: "too many pictures wait",
        503: "the job was stopped",
    }.items()
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            },
        },
    }
}


def _responses(*codes: int, **more: Any) -> dict[int | str, dict[str, Any]]:
    return {**{code: _PROBLEMS[code] for code in (401, 403, *codes)}, **more}


def _add_api(app: FastAPI, board: JobBoard, settings: ServeSettings) -> None:
    options = Depends(UpscaleOptions)
    pictures = {200: {"content": {media: {} for media in _MEDIA.values()}, "description": "the larger picture"}}

    def find(identifier: str) -> Job:
        job = board.jobs.get(identifier)
        if job is None:
            raise HTTPException(404, f"there is no job {identifier!r}; results are kept for a while only")
        return job

    @app.get("/healthz")
    async def health() -> Health:
        """That the server answers."""
        return Health()

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}, "description": "counts"}, **_responses()},
    )
    async def metrics() -> Response:
        """Counts and times, for Prometheus."""
        return Response(app.state.metrics.text(board), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models", responses=_responses())
    async def models() -> list[ModelFacts]:
        """The networks that can be asked for."""
        return await asyncio.to_thread(_list_networks)

    @app.post(
        "/v1/upscale",
        response_class=Response,
        openapi_extra=_BODY,
        responses={**pictures, **_responses(400, 404, 408, 413, 415, 429, 503)},
    )
    async def upscale(request: Request, wanted: UpscaleOptions = options) -> Response:
        """Enlarge a picture and answer with the larger one. A client that goes away stops the work."""
        job = await _accept(request, wanted, board, settings)
        try:
            while not job.ended.is_set():
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(job.ended.wait(), _WATCH_SECONDS)
                if await request.is_disconnected():
                    break
        except BaseException:
            board.remove(job)
            raise
        if job.state != "done":
            board.remove(job)
            return refusal(503 if job.state == "cancelled" else 400, job.error_class or "Gone", job.error or "")
        return _picture(job, BackgroundTask(board.remove, job))

    @app.post(
        "/v1/jobs",
        status_code=202,
        openapi_extra=_BODY,
        responses=_responses(400, 404, 408, 413, 415, 429),
    )
    async def create_job(request: Request, wanted: UpscaleOptions = options) -> JobFacts:
        """Enlarge a picture in the background: answers at once with a job."""
        return _facts(await _accept(request, wanted, board, settings))

    @app.get("/v1/jobs/{identifier}", responses=_responses(404))
    async def read_job(identifier: str) -> JobFacts:
        """How far a job is."""
        return _facts(find(identifier))

    @app.get(
        "/v1/jobs/{identifier}/events",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}, "description": "JobFacts"}, **_responses(404)},
    )
    async def watch_job(identifier: str) -> Response:
        """The job's facts as server-sent events, each time something changed, until it has ended."""
        return StreamingResponse(_events(find(identifier)), media_type="text/event-stream")

    @app.get("/v1/jobs/{identifier}/result", response_class=Response, responses={**pictures, **_responses(404, 409)})
    async def fetch_result(identifier: str) -> Response:
        """The larger picture of a job that is done."""
        job = find(identifier)
        if job.state != "done":
            raise HTTPException(409, f"the job is {job.state}" + (f": {job.error}" if job.error else ""))
        return _picture(job)

    @app.delete("/v1/jobs/{identifier}", status_code=204, responses=_responses(404))
    async def delete_job(identifier: str) -> None:
        """Cancel a job, and forget it with its result."""
        board.remove(find(identifier))

    @app.get(
        "/v1/archive",
        response_class=Response,
        responses={200: {"content": {"application/zip": {}}, "description": "a zip file"}, **_responses(404, 409)},
    )
    async def fetch_archive(job: Annotated[list[str], Query(min_length=1, max_length=500)]) -> Response:
        """The results of several jobs in one zip file."""
        found = [find(identifier) for identifier in dict.fromkeys(job)]
        if any(each.state != "done" for each in found):
            raise HTTPException(409, "not all of these jobs are done")
        _, folder = board.new_folder()
        path = folder / "pictures.zip"
        await asyncio.to_thread(_write_archive, path, found)
        return FileResponse(
            path, media_type="application/zip", filename="pictures.zip", background=BackgroundTask(_remove, path)
        )


async def _accept(request: Request, wanted: UpscaleOptions, board: JobBoard, settings: ServeSettings) -> Job:
    """Take a request's picture into the queue; raises a BamError with an answer of its own where that cannot be."""
    board.check_room()
    if wanted.model not in {each.network for each in list_models()}:
        raise UnknownModelError(f"{wanted.model!r} is no network of this server; GET /v1/models lists them")
    identifier, folder = board.new_folder()
    source = folder / "source"
    try:
        name = await save_upload(request, source, max_bytes=settings.max_body_bytes, seconds=settings.body_seconds)
        try:
            info = await asyncio.to_thread(probe_picture, source, max_pixels=settings.max_pixels)
        except BamError as error:
            raise type(error)(str(error).replace(str(source), name)) from error
        scale = wanted.scale or await asyncio.to_thread(_own_scale, wanted.model)
        height, width = target_size((info.height, info.width), scale)
        if height * width > settings.max_result_pixels:
            raise UploadError(
                f"the result would have {width}x{height} pixels, {settings.max_result_pixels:,} are allowed", status=413
            )
        job = Job(
            id=identifier,
            name=name,
            folder=folder,
            source=source,
            model=wanted.model,
            scale=wanted.scale,
            format=wanted.format,
            quality=wanted.quality,
            pixels=info.height * info.width,
        )
        board.submit(job)
    except BaseException:
        _remove(source)
        raise
    return job


async def _events(job: Job) -> AsyncIterator[str]:
    shown = None
    while True:
        facts = _facts(job).model_dump_json()
        if facts != shown:
            shown = facts
            yield f"data: {facts}\n\n"
        if job.ended.is_set():
            return
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(job.ended.wait(), _WATCH_SECONDS)


def _facts(job: Job) -> JobFacts:
    width, height = job.size or (None, None)
    return JobFacts(
        id=job.id,
        name=job.name,
        state=job.state if job.ended.is_set() or job.state in ("waiting", "running") else "running",
        progress=job.progress,
        error=job.error,
        error_class=job.error_class,
        width=width,
        height=height,
        seconds=job.seconds,
        notes=list(job.notes),
    )


def _picture(job: Job, background: BackgroundTask | None = None) -> Response:
    return FileResponse(
        job.result,
        media_type=_MEDIA[job.format],
        filename=_result_name(job),
        headers={"X-Seconds": f"{job.seconds:.3f}", "X-Notes": json.dumps(job.notes)},
        background=background,
    )


def _result_name(job: Job) -> str:
    return f"{Path(job.name).stem or 'picture'}_large.{job.format}"


def _write_archive(path: Path, jobs: list[Job]) -> None:
    """One file for each result, under the picture's name; a second one of a name gets a number."""
    taken: set[str] = set()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for job in jobs:
            name, number = _result_name(job), 1
            while name in taken:
                number += 1
                name = f"{Path(job.name).stem or 'picture'}_large_{number}.{job.format}"
            taken.add(name)
            archive.write(job.result, name)


def _remove(path: Path) -> None:
    """Remove a file and the folder that was made for it."""
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()


def _own_scale(model: str) -> int:
    return read_model(find_model(model)).scale


def _list_networks() -> list[ModelFacts]:
    return [
        ModelFacts(
            model=each.network,
            scale=each.scale,
            default=each.network == DEFAULT_NETWORK,
            sha256=read_model(each.path).sha256,
        )
        for each in list_models()
    ]
