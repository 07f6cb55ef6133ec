"""The shapes of the API's answers, and the answer to a request that is refused."""

from __future__ import annotations

from typing import Literal

from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from bam_plugin import __version__


class Refusal(BaseModel):
    """Why a request was not served."""

    error: str = Field(description="name of the error")
    message: str = Field(description="what was expected, what was found, what to do next")


class ModelFacts(BaseModel):
    """One network in one scale."""

    model: str
    scale: int
    default: bool
    sha256: str


class JobFacts(BaseModel):
    """A job as it stands."""

    id: str
    name: str
    state: Literal["waiting", "running", "done", "failed", "cancelled"]
    progress: float = Field(ge=0, le=1)
    error: str | None = None
    error_class: str | None = None
    width: int | None = None
    height: int | None = None
    seconds: float | None = None
    notes: list[str] = []


class Health(BaseModel):
    """That the server answers, and its version."""

    status: Literal["ok"] = "ok"
    version: str = __version__


def refusal(status: int, error: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """A Refusal as an answer with this status."""
    return JSONResponse({"error": error, "message": message}, status_code=status, headers=headers)
