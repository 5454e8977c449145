"""`GET /openapi.json`: what the gateway serves, in OpenAPI 3.1. Loose where a back end decides, exact where the gateway does."""

from __future__ import annotations

from typing import Any, Final

from spanloop_collector.gateway.planning import VERSION_HEADER
from spanloop_collector.gateway.routing import SESSION_HEADER

_TITLE: Final = "Spanloop gateway"
_OBJECT: Final[dict[str, Any]] = {"type": "object"}


def document(secured: bool) -> dict[str, Any]:
    """The description.

    Args:
        secured: whether calls need the token.
    """
    paths: dict[str, Any] = {
        "/v1/chat/completions": {"post": _call("createChatCompletion", "Chat", "ChatRequest")},
        "/v1/completions": {"post": _call("createCompletion", "Legacy completion", "CompletionRequest")},
        "/v1/responses": {"post": _call("createResponse", "Response", "ResponseRequest")},
        "/v1/embeddings": {"post": _call("createEmbedding", "Embeddings", "EmbeddingRequest", stream=False)},
        "/v1/models": {
            "get": _operation(
                "listModels", "Every name that can be asked for", {"200": _json("Models", "The list")}
            )
        },
        "/healthz": {
            "get": {**_operation("health", "State", {"200": _json("Health", "It serves")}), "security": []}
        },
        "/metrics": {
            "get": _operation(
                "metrics",
                "Counters for Prometheus",
                {"200": {"description": "Text", "content": {"text/plain": {"schema": {"type": "string"}}}}},
            )
        },
        "/flush": {
            "post": _operation(
                "flush",
                "Send the spans of answered calls",
                {"200": _json("Flushed", "Sent"), "504": _json("Flushed", "Not in time")},
            )
        },
        "/pause": {"post": _admin("pause", "New calls wait; answers when those in flight have ended")},
        "/resume": {"post": _admin("resume", "Calls begin again")},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": _TITLE,
            "version": "1",
            "description": "OpenAI's protocol in front of model servers. A model's name is resolved by the registry; "
            "any other path below /v1 is passed to the default upstream as it is.",
        },
        "paths": paths,
        "components": {
            "schemas": _SCHEMAS,
            "responses": {"Error": _json("Error", "What went wrong, and what to do next")},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        **({"security": [{"token": []}]} if secured else {}),
    }


def _operation(name: str, summary: str, responses: dict[str, Any]) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": summary,
        "responses": {
            **responses,
            "401": {"$ref": "#/components/responses/Error"},
        },
    }


def _call(name: str, what: str, schema: str, *, stream: bool = True) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": _OBJECT}}
    if stream:
        content["text/event-stream"] = {}
    answer = {
        "description": "The upstream's answer",
        "headers": {
            VERSION_HEADER: {"description": "NAME@VERSION that served", "schema": {"type": "string"}}
        },
        "content": content,
    }
    error = {"$ref": "#/components/responses/Error"}
    own = ("400", "404", "408", "413", "502", "503", "504")
    made = _operation(name, what, {"200": answer, **dict.fromkeys(own, error), "default": _UPSTREAM})
    made["parameters"] = [
        {
            "name": SESSION_HEADER,
            "in": "header",
            "required": False,
            "description": "The session, for canary shares",
            "schema": {"type": "string", "pattern": "^[\\x21-\\x7e]{1,200}$"},
        }
    ]
    made["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
    }
    return made


def _admin(name: str, summary: str) -> dict[str, Any]:
    made = _operation(name, summary, {"200": _json("State", "The state now")})
    made["responses"]["403"] = {"$ref": "#/components/responses/Error"}
    return made


def _json(schema: str, what: str) -> dict[str, Any]:
    return {
        "description": what,
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
    }


_UPSTREAM: Final[dict[str, Any]] = {"description": "The upstream's own error, as it came"}
_MODEL: Final[dict[str, Any]] = {
    "type": "string",
    "minLength": 1,
    "description": "NAME, NAME@ALIAS, NAME@VERSION, or any name that an upstream knows",
}
_STREAM: Final[dict[str, Any]] = {"type": ["boolean", "null"]}
_COUNT: Final[dict[str, Any]] = {"type": "integer", "minimum": 0}
_STATE: Final[dict[str, Any]] = {"type": "string", "enum": ["running", "pausing", "paused"]}


def _request(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["model", *required],
        "properties": {"model": _MODEL, **properties},
        "additionalProperties": True,
    }


def _record(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


_SCHEMAS: Final[dict[str, Any]] = {
    "ChatRequest": _request(
        ["messages"],
        messages={
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["role"],
                "properties": {"role": {"type": "string"}, "content": {}},
            },
        },
        stream=_STREAM,
        tools={"type": "array", "items": _OBJECT},
        temperature={"type": ["number", "null"]},
        n={"type": ["integer", "null"], "minimum": 1, "maximum": 4},
    ),
    "CompletionRequest": _request(["prompt"], prompt={"type": ["string", "array"]}, stream=_STREAM),
    "ResponseRequest": _request(["input"], input={"type": ["string", "array"]}, stream=_STREAM),
    "EmbeddingRequest": _request(["input"], input={"type": ["string", "array"]}),
    "Error": _record(
        error={
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    ),
    "Models": _record(
        object={"const": "list"},
        data={
            "type": "array",
            "items": {
                "type": "object",
                "required": ["id"],
                "properties": {"id": {"type": "string"}},
            },
        },
    ),
    "Health": {
        **_record(
            status={"const": "ok"},
            state=_STATE,
            in_flight=_COUNT,
            waiting=_COUNT,
            registry={"type": "object"},
            upstreams={"type": "array", "items": _OBJECT},
        ),
    },
    "State": _record(state=_STATE, in_flight=_COUNT, waiting=_COUNT),
    "Flushed": _record(sent={"type": "boolean"}),
}
