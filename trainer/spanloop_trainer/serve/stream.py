"""Turns sampled tokens into the chunks of a stream: text as soon as it is certain, tool calls whole at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from spanloop_trainer.serve.engine import Row
from spanloop_trainer.serve.protocol import Answer, finish_reason
from spanloop_trainer.serve.tool_calls import OPEN
from spanloop_trainer.serve.worker import Token


class ChoiceStream:
    """The text of one answer so far, and how much of it was sent."""

    def __init__(self, answer: Answer, stop: tuple[str, ...]) -> None:
        self._answer = answer
        self._stop_ids = answer.model.stop_ids
        self._tokens: list[int] = []
        self._sent = 0  # characters
        # Text from which on it is not yet known whether it will be content.
        self._markers = (*stop, OPEN) if answer.request.offers_tools else stop

    def push(self, token: int) -> str:
        """Add a token; return the text that it made certain."""
        if token in self._stop_ids:
            return ""
        self._tokens.append(token)
        text = self._answer.model.decode(self._tokens)
        certain = min(self._certain(text), len(text))
        piece, self._sent = text[self._sent : certain], max(self._sent, certain)
        return piece

    def rest(self, content: str | None) -> str:
        """What is left to send of the final content."""
        piece = (content or "")[self._sent :]
        self._sent += len(piece)
        return piece

    def _certain(self, text: str) -> int:
        """How many characters can be sent: none of an open marker, of half a character or of a blank before a call."""
        end = len(text)
        for marker in self._markers:
            at = text.find(marker, self._sent)
            if at >= 0:
                end = min(end, at)
                continue
            for length in range(min(len(marker) - 1, len(text)), 0, -1):
                if text.endswith(marker[:length]):
                    end = min(end, len(text) - length)
                    break
        # A tokenizer shows the first bytes of a character as U+FFFD until the others have come.
        while end > self._sent and text[end - 1] == "\ufffd":
            end -= 1
        if self._answer.request.offers_tools:
            # `parse` strips the content around calls, so blanks at either end wait until they are inside it.
            end = len(text[:end].rstrip())
        return end


async def chunks(answer: Answer, events: AsyncIterator[Token | Row]) -> AsyncIterator[dict[str, Any]]:
    """The chunks of a streamed answer, in OpenAI's order: role, deltas, finish, usage if asked for."""
    request = answer.request
    samplings = request.samplings(answer.model.context - len(answer.prompt))
    streams = [ChoiceStream(answer, sampling.stop) for sampling in samplings]
    rows: list[Row] = []
    opening = [_choice(index, {"role": "assistant", "content": ""}) for index in range(len(streams))]
    first = answer.chunk(opening)
    if request.return_token_ids:
        first["prompt_token_ids"] = answer.prompt
    yield first
    async for event in events:
        if isinstance(event, Token):
            piece = streams[event.choice].push(event.token)
            choice = _choice(event.choice, {"content": piece} if piece else {})
            if request.return_token_ids:
                choice["token_ids"] = [event.token]
            if request.logprobs:
                choice["logprobs"] = answer.logprobs([event.token], [event.logprob])
            # A token that shows nothing yet is a chunk only for those who asked for tokens.
            if piece or request.return_token_ids or request.logprobs:
                yield answer.chunk([choice])
            continue
        rows.append(event)
        index = event.sampling.index
        content, calls = answer.parsed(event)
        delta: dict[str, Any] = {}
        if piece := streams[index].rest(content):
            delta["content"] = piece
        if calls:
            delta["tool_calls"] = [{"index": at, **call.to_openai()} for at, call in enumerate(calls)]
        if delta:
            yield answer.chunk([_choice(index, delta)])
        yield answer.chunk([_choice(index, {}, finish_reason(event, calls))])
    if request.stream_options is not None and request.stream_options.include_usage:
        yield {**answer.chunk([]), "usage": answer.usage(rows)}


def _choice(index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}
