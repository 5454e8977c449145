"""`GET /openapi.json` of the OTLP/HTTP port: the feedback API in OpenAPI 3.1, exact enough to make requests from."""

from __future__ import annotations

import sys
from typing import Any, Final

from spanloop_collector.feedback.judgement import (
    END_SECOND,
    EVALUATOR,
    FIRST_SECOND,
    MAX_KEY,
    MAX_TEXT,
    SPAN_DIGITS,
    TARGETS,
    TRACE_DIGITS,
)

_ABOUT: Final = {
    "response_id": "The id that the model server gave its answer (`gen_ai.response.id`).",
    "session_id": "`session.id` or `gen_ai.conversation.id` of the run.",
    "name": "What is judged; judgements of several names are weighed in spanloop.toml.",
    "label": "The judgement in a word; alone, without a value, it is unscored.",
    "comment": "Why; kept as the explanation.",
    "evaluator": f"Who or what judged; `{EVALUATOR}` where nobody is named.",
    "version": "Of the evaluator.",
    "id": "Idempotency key: of judgements with one id the newest counts. Else it is made from what the judgement says.",
}


def document(path: str, max_items: int, key_header: str) -> dict[str, Any]:
    """The description.

    Args:
        path: of the route.
        max_items: of one request.
        key_header: name of the header with an idempotency key.
    """
    feedback, answer = {"$ref": "#/components/schemas/Feedback"}, {"$ref": "#/components/schemas/Answer"}
    listed = {"type": "array", "items": feedback, "minItems": 1, "maxItems": max_items}
    held = {
        "type": "object",
        "properties": {"items": listed},
        "required": ["items"],
        "additionalProperties": False,
    }
    each = {"oneOf": [answer, {"$ref": "#/components/schemas/Answers"}]}
    operation = {
        "operationId": "sendFeedback",
        "summary": "Judge calls and runs, by the id of a trace, span, response or session",
        "description": "On the disk when it is answered; a row of the table `rewards` a second later. What is judged need not"
        " be there yet.",
        "parameters": [
            {
                "name": key_header,
                "in": "header",
                "required": False,
                "description": "The `id` of a judgement without one; in a list, followed by `/` and its place.",
                "schema": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": MAX_KEY,
                    "pattern": "^[!-~]([ -~]*[!-~])?$",
                },
            }
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"oneOf": [feedback, listed, held]}}},
        },
        "responses": {
            "200": _json("Taken, all of it", each),
            "207": _json("Some items were taken, some refused", {"$ref": "#/components/schemas/Answers"}),
            "400": _json("The body is no JSON, or ended early", answer),
            "401": _json("No token, where one is needed", answer),
            "408": _json("Nothing of the body came for half a minute", answer),
            "413": _json("The body is too large", answer),
            "415": _json("Another content type or encoding", answer),
            "417": {
                "description": "An `Expect` header that is not `100-continue`"
            },  # HTTP itself answers, as a text
            "422": _json("Nothing was taken; the fields at fault are named", each),
            "429": _json("Too much at once; Retry-After says when", answer),
            "503": _json("The collector cannot take more now; Retry-After says when", answer),
        },
        "security": [{}, {"token": []}],
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Spanloop feedback",
            "version": "1",
            "description": "Judgements of what agents did. OTLP on the same port has a specification of its own.",
        },
        "paths": {path: {"post": operation}},
        "components": {
            "schemas": {"Feedback": _feedback(), "Answer": _answer(), "Answers": _answers(max_items)},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _feedback() -> dict[str, Any]:
    texts: dict[str, Any] = {
        name: {
            "type": ["string", "null"],
            "maxLength": MAX_TEXT[name],
            **({} if name == "comment" else {"minLength": 1}),
            "description": about,
        }
        for name, about in _ABOUT.items()
    }
    texts["name"]["type"] = "string"
    return {
        "type": "object",
        "description": "null is the same as not given",
        "properties": {
            "trace_id": _hex(TRACE_DIGITS),
            "span_id": _hex(SPAN_DIGITS),
            **texts,
            "value": {
                "type": ["number", "boolean", "null"],
                "description": "Finite; larger is better. true is 1, false is 0.",
                "minimum": -sys.float_info.max,
                "maximum": sys.float_info.max,
            },
            "time": {
                "description": "When the judgement was made: RFC 3339 or seconds since 1970; now where it is not given."
                " Older than the store keeps is refused.",
                "anyOf": [
                    {"type": "string", "format": "date-time", "pattern": "^20[0-9]{2}-"},
                    {"type": "number", "minimum": FIRST_SECOND, "exclusiveMaximum": END_SECOND},
                    {"type": "null"},
                ],
            },
        },
        "required": ["name"],
        "additionalProperties": False,
        "allOf": [_any_of(TARGETS, "string"), _any_of(("value",), "number", "boolean", or_text="label")],
    }


def _any_of(names: tuple[str, ...], *kinds: str, or_text: str = "") -> dict[str, Any]:
    wanted = [(name, list(kinds)) for name in names] + ([(or_text, ["string"])] if or_text else [])
    return {"anyOf": [{"required": [name], "properties": {name: {"type": kind}}} for name, kind in wanted]}


def _hex(digits: int) -> dict[str, Any]:
    return {
        "type": ["string", "null"],
        "pattern": f"^[0-9a-fA-F]{{{digits}}}$",
        "not": {"const": "0" * digits},
        "minLength": digits,
        "maxLength": digits,
    }


def _answer() -> dict[str, Any]:
    problem = {
        "type": "object",
        "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
        "required": ["field", "message"],
    }
    return {
        "type": "object",
        "properties": {
            "id": {"type": "string", "description": "Of the judgement, in the table `rewards`."},
            "status": {"enum": ["stored", "repeated", "refused"]},
            "errors": {"type": "array", "items": problem},
        },
        "required": ["status"],
    }


def _answers(max_items: int) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "items": {
                "type": "array",
                "items": {"$ref": "#/components/schemas/Answer"},
                "maxItems": max_items,
            },
            "taken": {"type": "integer"},
            "refused": {"type": "integer"},
        },
        "required": ["items", "taken", "refused"],
    }


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
