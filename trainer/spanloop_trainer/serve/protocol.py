"""The part of OpenAI's chat completions that we speak: requests checked field by field, answers and stream chunks."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spanloop_trainer.serve.engine import Row
from spanloop_trainer.serve.models import LoadedModel
from spanloop_trainer.serve.sampling import Sampling
from spanloop_trainer.serve.tool_calls import ToolCall, parse

DEFAULT_MAX_TOKENS = 1024  # when a request sets no limit; the context is the other bound
MAX_CHOICES = 128  # OpenAI's limit of n


class BadRequest(Exception):
    """A request that is answered 400; `field` is the parameter at fault."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class _Lenient(BaseModel):
    """Part of a request that is checked as far as we read it; chat templates see the rest too."""

    model_config = ConfigDict(extra="allow")


class TextPart(_Lenient):
    """The one kind of content part that a text model can read."""

    type: Literal["text"]
    text: str


class CalledFunction(_Lenient):
    """What an assistant called before."""

    name: str
    arguments: str  # a JSON object, as text


class MessageToolCall(_Lenient):
    """One entry of an assistant message's `tool_calls`."""

    function: CalledFunction


class Message(_Lenient):
    """One message of the conversation so far."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: list[MessageToolCall] | None = None


class FunctionSchema(_Lenient):
    """A function that the model may call; its `parameters` are the template's business."""

    name: str


class Tool(_Lenient):
    """One entry of `tools`."""

    type: Literal["function"]
    function: FunctionSchema


class StreamOptions(_Lenient):
    """`stream_options`."""

    include_usage: bool | None = None  # one more chunk at the end, with the token counts


class TextFormat(_Lenient):
    """`response_format`: constrained decoding is not done here, so only plain text."""

    type: Literal["text"]


class ChatRequest(BaseModel):
    """`POST /v1/chat/completions`. Fields that do not change the answer (user, metadata, …) are ignored."""

    model_config = ConfigDict(extra="ignore")

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    return_token_ids: bool | None = None
    # Accepted at the value that changes nothing; refused otherwise, since ignoring them would answer something else.
    top_logprobs: Literal[0] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    response_format: TextFormat | None = None

    @property
    def offers_tools(self) -> bool:
        """Whether the prompt shows the tools."""
        return bool(self.tools) and self.tool_choice != "none"

    def samplings(self, room: int) -> list[Sampling]:
        """Settings of each of the n answers. `room`: tokens that fit in the context; a larger limit is cut to it."""
        limit = self.max_completion_tokens or self.max_tokens or DEFAULT_MAX_TOKENS
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return [
            Sampling(
                temperature=1.0 if self.temperature is None else self.temperature,
                top_p=1.0 if self.top_p is None else self.top_p,
                max_tokens=min(limit, room),
                stop=tuple(text for text in stop if text),
                seed=self.seed,
                index=index,
            )
            for index in range(self.n or 1)
        ]


def parse_request(body: bytes) -> tuple[ChatRequest, dict[str, Any]]:
    """Check a request body.

    Returns:
        the request, and its JSON as sent: templates see messages and tools untouched.

    Raises:
        BadRequest: names the field.
    """
    import orjson

    try:
        raw = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise BadRequest("the body is not a JSON object")
    try:
        return ChatRequest.model_validate(raw), raw
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadRequest(f"{where}: {first['msg']} (got {str(first['input'])[:100]!r})", where) from error


def error_body(message: str, kind: str, field: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    return {"error": {"message": message, "type": kind, "param": field, "code": code}}


@dataclass(frozen=True)
class Answer:
    """What every response and chunk of one request repeats."""

    request: ChatRequest
    model: LoadedModel
    prompt: list[int]
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(16)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def response(self, rows: list[Row]) -> dict[str, Any]:
        """The whole answer."""
        out = self._head("chat.completion")
        out["choices"] = [self._choice(row) for row in rows]
        out["usage"] = self.usage(rows)
        if self.request.return_token_ids:
            out["prompt_token_ids"] = self.prompt
        return out

    def chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """One chunk of a stream."""
        return {**self._head("chat.completion.chunk"), "choices": choices}

    def usage(self, rows: list[Row]) -> dict[str, int]:
        """Token counts; the prompt counts once, as OpenAI counts it."""
        completion = sum(len(row.tokens) for row in rows)
        return {
            "prompt_tokens": len(self.prompt),
            "completion_tokens": completion,
            "total_tokens": len(self.prompt) + completion,
        }

    def parsed(self, row: Row) -> tuple[str | None, list[ToolCall]]:
        """Content and tool calls of a finished row; without tools on offer all text is content."""
        return parse(row.text) if self.request.offers_tools else (row.text, [])

    def logprobs(self, tokens: list[int], values: list[float]) -> dict[str, Any]:
        """`logprobs` of a choice, one entry a token."""
        content = []
        for token, value in zip(tokens, values, strict=True):
            piece = self.model.decode([token])
            entry = {"token": piece, "logprob": value, "bytes": list(piece.encode()), "top_logprobs": []}
            content.append(entry)
        return {"content": content, "refusal": None}

    def _choice(self, row: Row) -> dict[str, Any]:
        content, calls = self.parsed(row)
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if calls:
            message["tool_calls"] = [call.to_openai() for call in calls]
        choice: dict[str, Any] = {
            "index": row.sampling.index,
            "message": message,
            "finish_reason": finish_reason(row, calls),
            "logprobs": self.logprobs(row.tokens, row.logprobs) if self.request.logprobs else None,
        }
        if self.request.return_token_ids:
            choice["token_ids"] = row.tokens
        return choice

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model.version}


def finish_reason(row: Row, calls: list[ToolCall]) -> str:
    """`tool_calls` where an answer that ended by itself calls tools; an answer cut at its limit says `length`."""
    return "tool_calls" if calls and row.finish_reason == "stop" else row.finish_reason
