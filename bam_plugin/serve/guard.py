"""What stands before the application: the token, pages of other sites, and headers for browsers."""

from __future__ import annotations

import secrets

from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bam_plugin.serve.answers import refusal

_SECURITY = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Guard:
    """Refuses requests without the token and those of other sites' pages, and adds headers to all answers."""

    def __init__(self, app: ASGIApp, *, token: str | None):
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; a plain ASGI application, so that routes learn when their client goes away."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_SECURITY)
            await send(message)

        answer = self._refusal(Request(scope)) or self._app
        await answer(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        origin = request.headers.get("origin")
        if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
            return refusal(403, "ForeignOriginError", f"requests of pages of {origin} are not served")
        if self._token and request.url.path.startswith(("/v1/", "/metrics")):
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            given = given or request.query_params.get("token", "")
            if not secrets.compare_digest(given.encode(), self._token.encode()):
                return refusal(401, "TokenError", "a token is needed: the header `Authorization: Bearer TOKEN`")
        return None
