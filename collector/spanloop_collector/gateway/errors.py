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

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        code: str,
        *,
        param: str | None = None,
        retry_after_s: int = 1,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self) -> bytes:
        """The JSON body `{"error": {"message", "type", "param", "code"}}`."""
        return orjson.dumps(
            {
                "error": {
                    "message": self.message,
                    "type": self.kind,
                    "param": self.param,
                    "code": self.code,
                }
            }
        )

    def response(self) -> web.Response:
        """The whole HTTP answer; 503 says when to come back, 401 how."""
        headers: dict[str, str] = {}
        if self.status == 503:
            headers["retry-after"] = str(self.retry_after_s)
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return web.Response(
            status=self.status, body=self.body(), content_type="application/json", headers=headers
        )


def bad_request(message: str, code: str, param: str | None = None) -> ClientError:
    """400 for a request that says something impossible."""
    return ClientError(400, "invalid_request_error", message, code, param=param)


def overloaded(name: str, why: str) -> ClientError:
    """503 for a call that no back end of the pool can take now."""
    return ClientError(
        503,
        "api_error",
        f"upstream {name} is at its limit: {why}. Next: send it again in some seconds; docs/gateway.md has the limits.",
        "upstream_overloaded",
        retry_after_s=5,
    )


def too_slow(name: str, url: str, what: str) -> ClientError:
    """504 for a back end that took longer than a limit allows."""
    return ClientError(
        504,
        "api_error",
        f"upstream {name} ({url}) took too long: {what}. Next: look at its load, or raise the limit under [gateway].",
        "upstream_timeout",
    )


def paused(wait_s: float, waiting: int) -> ClientError:
    """503 for a call that came while the gateway was paused."""
    return ClientError(
        503,
        "api_error",
        f"the gateway is paused, and this call cannot wait longer ({waiting} wait, each up to {wait_s:g} s). "
        "Next: send it again; `POST /resume` ends the pause.",
        "gateway_paused",
        retry_after_s=10,
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


def unreachable(name: str, url: str, reason: str) -> ClientError:
    """502 for a back end that does not answer or that broke off."""
    return ClientError(
        502,
        "api_error",
        f"upstream {name} ({url}) failed: {reason}. Next: check that it runs, with `curl {url}/models`.",
        "upstream_unreachable",
    )
