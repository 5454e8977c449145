"""Model calls and tool calls that the agent records itself, as an instrumentor would have recorded them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextvars import Token
from types import TracebackType
from typing import Any, Final, Self

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from spanloop_exporter.calls import claims, tools
from spanloop_exporter.calls.messages import as_json, checked, recorded
from spanloop_exporter.calls.record import Call, read_chat, request_attributes
from spanloop_exporter.safety import detach, quietly

_PARAMETERS: Final = frozenset(
    {"temperature", "top_p", "max_tokens", "max_completion_tokens", "seed", "stop", "n", "tool_choice"}
)


class _Recorded:
    """A span that is current inside `with`, and fails when the block does.

    Attributes:
        span: for `reward(…, span=…)`.
    """

    def __init__(self, name: str, kind: SpanKind, attributes: Mapping[str, AttributeValue]) -> None:
        self._name, self._kind, self._attributes = name, kind, attributes
        self._token: Token[Context] | None = None
        self.span: Span = trace.INVALID_SPAN

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if self._token is not None:
            detach(self._token)
            self._token = None
        self._close(error)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    @quietly
    def _open(self) -> None:
        self.span = trace.get_tracer(claims.SCOPE).start_span(
            self._name, kind=self._kind, attributes=self._attributes
        )
        self._token = context.attach(trace.set_span_in_context(self.span))

    @quietly
    def _say(self, key: str, value: object) -> None:
        self.span.set_attribute(key, value if isinstance(value, str) else as_json(value))

    @quietly
    def _close(self, error: BaseException | None) -> None:
        try:
            # As OpenTelemetry has it: a generator that is closed, a task that is cancelled is no error.
            if isinstance(error, Exception):
                self.span.set_attribute("error.type", type(error).__qualname__)
                self.span.set_status(Status(StatusCode.ERROR, str(error)))
                self.span.record_exception(error)
        finally:
            self.span.end()


class model_call(_Recorded):  # used as a function
    """A call to a model that no instrumentor knows, recorded as those that one knows.

        with spanloop.model_call("my-model", messages, temperature=0.7) as call:
            text = my_client.ask(messages)
            call.answer(text)

    Args:
        model: its name.
        messages: the prompt, in OpenAI's chat form.
        tools: tool schemas that were offered, in OpenAI's form.
        parameters: temperature, top_p, max_tokens, max_completion_tokens, seed, stop, n, tool_choice.

    Raises:
        TypeError: an argument, a message or a tool call is of another type, or a parameter is not one of these.
        ValueError: a message has no role.
    """

    def __init__(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **parameters: Any,
    ) -> None:
        if not isinstance(model, str):
            raise TypeError(f"model is a name, not {_a(model)}")
        unknown = sorted(parameters.keys() - _PARAMETERS)
        if unknown:
            raise TypeError(
                f"model_call knows no {', '.join(unknown)}; parameters are {', '.join(sorted(_PARAMETERS))}"
            )
        self._messages, self._tools = checked(messages, "messages"), tools
        self._call = Call(request=request_attributes(parameters))
        attributes: dict[str, AttributeValue] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": model,
            **self._call.request,
        }
        super().__init__(f"chat {model}", SpanKind.CLIENT, attributes)

    @quietly
    def _open(self) -> None:
        super()._open()
        claims.begin(self._call)
        if claims.content_allowed():
            self._say("gen_ai.input.messages", [recorded(message) for message in self._messages])
            if self._tools is not None:
                self._say("gen_ai.tool.definitions", list(self._tools))
        tools.STEPS.results({"messages": self._messages, "tools": self._tools}, self._call)

    def answer(
        self,
        *messages: str | Mapping[str, Any],
        finish_reason: str = "stop",
        response_id: str | None = None,
        model: str | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        prompt_token_ids: Sequence[int] | None = None,
        completion_token_ids: Sequence[Sequence[int]] | None = None,
        logprobs: Sequence[Sequence[float]] | None = None,
    ) -> None:
        """Say what the model answered.

        Args:
            messages: texts, or assistant messages in OpenAI's chat form; one for each of n answers.
            finish_reason: "stop", "length", "tool_calls" or what the server says.
            response_id: the id that the server gave the answer.
            model: the model that the server says it was.
            input_tokens, output_tokens: usage.
            prompt_token_ids: exact tokens of the prompt.
            completion_token_ids, logprobs: of each answer; a log-probability for every token.

        Raises:
            TypeError: a message is neither text nor a dict.
            ValueError: no message is given, or one has no role.
        """
        if not messages:
            raise ValueError("answer() needs what the model said: a text, or a message")
        said = [
            {"role": "assistant", "content": item} if isinstance(item, str) else item for item in messages
        ]
        facts: dict[str, AttributeValue | None] = {
            "gen_ai.response.id": response_id,
            "gen_ai.response.model": model,
            "gen_ai.usage.input_tokens": input_tokens,
            "gen_ai.usage.output_tokens": output_tokens,
            "gen_ai.response.finish_reasons": [finish_reason] * len(said),
        }
        tokens = (prompt_token_ids, completion_token_ids, logprobs)
        self._answer(checked(said, "answer()"), finish_reason, response_id, facts, tokens)

    @quietly
    def _answer(
        self,
        said: list[Mapping[str, Any]],
        finish_reason: str,
        response_id: str | None,
        facts: Mapping[str, AttributeValue | None],
        tokens: tuple[Sequence[int] | None, Sequence[Sequence[int]] | None, Sequence[Sequence[float]] | None],
    ) -> None:
        prompt, ids, logprobs = tokens
        call = self._call
        choices: list[dict[str, Any]] = [
            {"index": index, "message": message} for index, message in enumerate(said)
        ]
        for index, choice in enumerate(choices):
            if ids is not None and index < len(ids):
                choice["token_ids"] = [int(token) for token in ids[index]]
            if logprobs is not None and index < len(logprobs):
                choice["logprobs"] = {"token_logprobs": [float(value) for value in logprobs[index]]}
        prompt_ids = None if prompt is None else [int(token) for token in prompt]
        call.reported.answered_ns = time.time_ns()
        call.choices.clear()  # said again, it replaces what was said before
        read_chat(call, {"id": response_id, "choices": choices, "prompt_token_ids": prompt_ids})
        claims.named(call)
        tools.STEPS.asked(call)
        content = claims.content_allowed()
        self.span.set_attributes({key: value for key, value in facts.items() if value is not None})
        self.span.set_attributes(call.attributes(content=content))
        if content:
            self._say("gen_ai.output.messages", [recorded(message, finish_reason) for message in said])


class tool_call(_Recorded):  # used as a function
    """A tool that runs where no instrumentor sees it.

        with spanloop.tool_call("add", {"a": 1, "b": 2}) as call:
            call.result(1 + 2)

    Args:
        name: the tool's.
        arguments: the model's own text, or what it parses to.
        id: the id that the model gave the call.

    Raises:
        TypeError: `name` or `id` is no text.
    """

    def __init__(self, name: str, arguments: object = None, *, id: str | None = None) -> None:
        if not isinstance(name, str):
            raise TypeError(f"name is a text, not {_a(name)}")
        if id is not None and not isinstance(id, str):
            raise TypeError(f"id is a text, not {_a(id)}")
        attributes: dict[str, AttributeValue] = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": name,
            "gen_ai.tool.type": "function",
        }
        if id is not None:
            attributes["gen_ai.tool.call.id"] = id
        self._arguments = arguments
        super().__init__(f"execute_tool {name}", SpanKind.INTERNAL, attributes)

    @quietly
    def _open(self) -> None:
        super()._open()
        if self._arguments is not None and claims.content_allowed():
            self._say("gen_ai.tool.call.arguments", self._arguments)

    def result(self, value: object) -> None:
        """Say what the tool gave; anything that is no text is recorded as JSON."""
        self._result(value)

    @quietly
    def _result(self, value: object) -> None:
        if claims.content_allowed():
            self._say("gen_ai.tool.call.result", value)


def _a(value: object) -> str:
    return f"a {type(value).__name__}"
