"""Render every error as problem+json (RFC 9457)."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ..errors import Contention, Fault, InvalidRequest, ServiceError, TooMany, Unauthorized, Unavailable
from .dependencies import get_context

MEDIA_TYPE = "application/problem+json"
_log = logging.getLogger("service.api")


def problem_response(error: ServiceError) -> JSONResponse:
    """The response for an error of our tree."""
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthorized) else {}
    if isinstance(error, Unavailable):
        headers["Retry-After"] = "2"
    if isinstance(error, TooMany):
        headers["Retry-After"] = str(error.retry_after)
    return JSONResponse(error.problem(), status_code=error.status, media_type=MEDIA_TYPE, headers=headers)


async def _service_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServiceError)
    if isinstance(error, Unavailable) and not isinstance(error, Contention):
        get_context(request).forgive_outage()
    return problem_response(error)


async def _validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    faults = []
    for found in error.errors():
        place, *rest = found["loc"]
        pointer = "#/" + "/".join(map(str, rest)) if place == "body" else f"#{place}/{'/'.join(map(str, rest))}"
        faults.append(Fault(pointer, str(found["msg"]).removeprefix("Value error, ")))
    return problem_response(InvalidRequest("the request does not have the form that this call takes", faults))


async def _http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, ServiceError):
        # FastAPI wraps our error if it occurs while the body is read.
        return problem_response(error.__cause__)
    if error.status_code == 400:
        # An unreadable body is reported in the same form as an invalid one.
        return problem_response(InvalidRequest(f"the request cannot be read: {error.detail}"))
    body = {
        "type": "about:blank",
        "title": error.detail,
        "status": error.status_code,
        "detail": f"{error.detail}; see /docs for the calls there are",
    }
    return JSONResponse(body, status_code=error.status_code, media_type=MEDIA_TYPE, headers=error.headers)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    _log.exception("unexpected error in %s %s", request.method, request.url.path, exc_info=error)
    return problem_response(ServiceError("an unexpected error; the server's log has the details"))


def add_error_handlers(app: FastAPI) -> None:
    """Render every error of this server as a problem."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)
