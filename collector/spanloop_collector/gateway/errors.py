"""Failures of the gateway: what stops it from starting, and what it answers to a client in OpenAI's error form."""

from __future__ import annotations

import orjson
from aiohttp import web

from spanloop_store.errors import SpanloopError


class GatewayConfigError(SpanloopError):
    """The gateway cannot start with these options."""


class ClientError(Exception):
    """An answer that is not 2xx and that the gateway itself gives, in the form that OpenAI clients understand.

    Args:
        status: HTTP status.
        kind: `error.type` of the body, as in OpenAI's API reference ("invalid_request_error", "api_error", …).
        message: what went wrong, followed by the next step.
        code: `error.code`, a stable word that programs can test.
    """

    def __init__(self, status: int, kind: str, message: str, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.code = code

    def body(self) -> bytes:
        """The JSON body `{"error": {"message", "type", "param", "code"}}`."""
        return orjson.dumps(
            {"error": {"message": self.message, "type": self.kind, "param": None, "code": self.code}}
        )

    def response(self) -> web.Response:
        """The whole HTTP answer; 503 asks the client to come back in a second."""
        headers = {"retry-after": "1"} if self.status == 503 else None
        return web.Response(
            status=self.status, body=self.body(), content_type="application/json", headers=headers
        )


def unknown_model(model: str, known: list[str]) -> ClientError:
    """404 for a model that the registry knows by name, but not in this version or under this alias."""
    shown = ", ".join(known[:20]) or "none yet"
    return ClientError(
        404,
        "invalid_request_error",
        f"model {model!r} is not in the registry (known: {shown}). "
        "Next: `spanloop status` lists versions and aliases; `spanloop promote NAME@V --alias candidate` points one.",
        "model_not_found",
    )


def no_upstream(what: str) -> ClientError:
    """404 for a request that no configured back end serves."""
    return ClientError(
        404,
        "invalid_request_error",
        f"no upstream is configured for {what}. "
        "Next: start with `spanloop up --upstream URL` (the default for every model) or `--upstream NAME=URL`.",
        "model_not_found",
    )


def unreachable(name: str, url: str, error: BaseException) -> ClientError:
    """502 for a back end that does not answer or that broke off."""
    reason = str(error) or type(error).__name__
    return ClientError(
        502,
        "api_error",
        f"upstream {name} ({url}) failed: {reason}. Next: check that it runs, with `curl {url}/models`.",
        "upstream_unreachable",
    )
