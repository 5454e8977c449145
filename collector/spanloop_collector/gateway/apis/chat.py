"""`/chat/completions` and the legacy `/completions`: choices with deltas or texts, vLLM's token protocol beside them.

vLLM gives `prompt_token_ids` at the top (legacy: in each choice), `choices[i].token_ids`, and log-probabilities where
OpenAI has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Final

from spanloop_collector.gateway.apis.base import NOTHING, VLLM, Api, logprobs_of, names
from spanloop_collector.gateway.jsonedit import replaced, without
from spanloop_collector.gateway.record import Call, Choice, error_text, integer, is_number

_PARAMETERS: Final = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "seed": "gen_ai.request.seed",
    "n": "gen_ai.request.choice.count",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
}
_SAMPLING: Final = {
    "temperature": ("temperature",),
    "top_p": ("top_p",),
    "top_k": ("top_k",),
    "min_p": ("min_p",),
    "max_tokens": ("max_tokens", "max_completion_tokens"),
    "seed": ("seed",),
    "presence_penalty": ("presence_penalty",),
    "frequency_penalty": ("frequency_penalty",),
    "repetition_penalty": ("repetition_penalty",),
}
_RETURN: Final = "return_token_ids"


class Chat(Api):
    """`POST /v1/chat/completions`."""

    path: ClassVar[str] = "/chat/completions"
    operation: ClassVar[str] = "chat"
    parameters: ClassVar[Mapping[str, str]] = _PARAMETERS
    sampling: ClassVar[Mapping[str, tuple[str, ...]]] = _SAMPLING

    def token_fields(self, body: Mapping[str, Any], owner: str) -> Mapping[str, Any]:  # noqa: ARG002  # what another endpoint needs
        """`return_token_ids` and `logprobs`."""
        return {name: True for name in (_RETURN, "logprobs") if not body.get(name)}

    def gives_tokens(self, body: Mapping[str, Any]) -> bool:
        """Whether ids or log-probabilities are asked for."""
        return bool(body.get(_RETURN)) or body.get("logprobs") not in (None, False)

    def absorb(self, call: Call, document: dict[str, Any], *, text: bool = False) -> None:
        """Read a whole answer or one chunk."""
        names(call, document)
        ids = document.get("prompt_token_ids")
        choices = document.get("choices")
        if isinstance(choices, list):
            for position, choice in enumerate(choices):
                if not isinstance(choice, dict):
                    continue
                if ids is None:
                    ids = choice.get("prompt_token_ids")  # where /completions has them
                seen = call.choice(integer(choice.get("index"), position) or 0)
                if isinstance(token_ids := choice.get("token_ids"), list):
                    seen.token_ids += token_ids
                if isinstance(logprobs := choice.get("logprobs"), dict):
                    seen.logprobs += _logprobs(logprobs)
                if reason := choice.get("finish_reason"):
                    seen.finish_reason = str(reason)
                if text:
                    _keep_text(seen, choice)
        if isinstance(ids, list) and call.prompt_token_ids is None:
            call.prompt_token_ids = ids
        usage = document.get("usage")
        if isinstance(usage, dict):
            call.input_tokens = integer(usage.get("prompt_tokens"), call.input_tokens)
            call.output_tokens = integer(usage.get("completion_tokens"), call.output_tokens)
        if error := document.get("error"):
            call.fail("upstream_error", error_text(error))

    def stripped(
        self, raw: bytes, document: dict[str, Any], added: Mapping[str, Any], owner: str
    ) -> bytes | None:
        """Without ids; log-probabilities become null, as servers write them where nobody asked.

        An event that says nothing but tokens is left out: it is made for those alone who ask for them.
        """
        choices = [choice for choice in _choices(document) if isinstance(choice, dict)]
        if _RETURN in added and "logprobs" in added and _only_tokens(document, choices):
            return b""
        text: bytes | None = raw
        # First, while what stands behind them in the document does so in the text.
        if "logprobs" in added:
            held = [choice for choice in choices if "logprobs" in choice]
            if held and (len(held) > 1 or held[0]["logprobs"] is not None):
                text = replaced(raw, "logprobs", held, b"null")
        if _RETURN in added:
            for key in ("prompt_token_ids", "token_ids"):
                if text is not None:
                    holders = [choice for choice in choices if key in choice]
                    if key in document:  # before or after the choices' own: one kind has one place
                        holders.append(document)
                    if owner != VLLM:
                        text = without(text, key, holders)
                    elif any(holder[key] is not None for holder in holders):
                        text = replaced(text, key, holders, b"null")
        return text

    def strip(self, document: dict[str, Any], added: Mapping[str, Any], owner: str) -> None:
        """The same on the document."""
        choices = [choice for choice in _choices(document) if isinstance(choice, dict)]
        if _RETURN in added:
            for item in (document, *choices):
                for key in ("prompt_token_ids", "token_ids"):
                    if owner == VLLM and key in item:
                        item[key] = None
                    else:
                        item.pop(key, None)
        if "logprobs" in added:
            for choice in choices:
                if "logprobs" in choice:
                    choice["logprobs"] = None


class Completions(Chat):
    """`POST /v1/completions`."""

    path: ClassVar[str] = "/completions"
    operation: ClassVar[str] = "text_completion"

    def token_fields(self, body: Mapping[str, Any], owner: str) -> Mapping[str, Any]:  # noqa: ARG002  # what another endpoint needs
        """`return_token_ids`, and `logprobs` 0: the sampled token's alone. Not for several prompts or an echoed one."""
        prompt = body.get("prompt")
        several = (
            isinstance(prompt, list) and len(prompt) > 1 and not all(type(item) is int for item in prompt)
        )
        if several or body.get("echo"):
            return NOTHING  # whose tokens are whose is not said
        fields: dict[str, Any] = {} if body.get(_RETURN) else {_RETURN: True}
        if body.get("logprobs") is None:
            fields["logprobs"] = 0
        return fields


def _choices(document: Mapping[str, Any]) -> list[Any]:
    choices = document.get("choices")
    return choices if isinstance(choices, list) else []


def _only_tokens(document: Mapping[str, Any], choices: list[dict[str, Any]]) -> bool:
    return bool(choices) and all(
        choice.get("delta") == {} and not choice.get("finish_reason") and not document.get("usage")
        for choice in choices
    )


def _logprobs(logprobs: dict[str, Any]) -> list[float]:
    flat = logprobs.get("token_logprobs")  # of /completions
    if isinstance(flat, list):
        return [value for value in flat if is_number(value)]
    return logprobs_of(logprobs.get("content")) or logprobs_of(logprobs.get("refusal"))


def _keep_text(seen: Choice, choice: Mapping[str, Any]) -> None:
    """Every string of the answer, tool arguments included: deltas of one kind follow each other."""
    said = choice.get("delta") or choice.get("message") or {"text": choice.get("text")}
    seen.text += _strings(said)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key not in ("role", "type", "id"):
                yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
