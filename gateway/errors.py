"""A client's error document: one sentence, a code, a request ID (RFC 9457)."""

from __future__ import annotations

import errno
from http import HTTPStatus
from typing import Any

import orjson
from starlette.responses import Response

OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
"""`type` of the OpenAI interface's errors by status; `invalid_request_error` below 500."""


class Problem(Exception):
    """A request that is not answered. `detail` holds nothing of what the client sent."""

    def __init__(
        self, status: int, code: str, detail: str, *, retry_after: float | None = None, **more: Any
    ) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.detail = detail
        self.more = more
        self.headers: dict[str, str] = {}
        if retry_after is not None:
            self.headers["Retry-After"] = str(max(1, round(retry_after)))
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"
        if status == 408:
            self.headers["Connection"] = "close"

    def document(self, request_id: str) -> dict[str, Any]:
        return {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            "request_id": request_id,
            **self.more,
        }

    def openai(self, request_id: str) -> dict[str, Any]:
        """The same in the form that OpenAI's clients read."""
        default_type = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {
            "message": self.detail,
            "type": OPENAI_TYPES.get(self.status, default_type),
            "param": None,
            "code": self.code,
        }
        return {"error": error | self.more, "request_id": request_id}

    def response(self, request_id: str, *, openai: bool = False) -> Response:
        if openai:
            return Response(
                orjson.dumps(self.openai(request_id)),
                self.status,
                self.headers,
                "application/json",
            )
        return Response(
            orjson.dumps(self.document(request_id)),
            self.status,
            self.headers,
            "application/problem+json",
        )


class ClientGone(Exception):
    """The client closed the connection; nobody waits for an answer."""


def of(error: BaseException) -> Problem:
    """The problem behind an exception; its own words stay inside, they may hold what was asked."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return Problem(
            507,
            "disk_full",
            "The gateway's disk is full; try again later, or tell its operator.",
            retry_after=30,
        )
    return Problem(
        500,
        "internal",
        "The gateway failed; its log has the reason under the request ID.",
    )


def of_status(status: int) -> Problem:
    """The problem of an unknown route or method."""
    details = {
        404: ("not_found", "There is nothing at this address; GET /openapi.json lists what is."),
        405: ("method", "This address does not take this method; Allow lists those it takes."),
    }
    code, detail = details.get(status, ("http", HTTPStatus(status).description or "Refused."))
    return Problem(status, code, detail)
