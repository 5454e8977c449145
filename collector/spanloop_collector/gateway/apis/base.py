"""What every endpoint has in common: how the gateway asks for tokens, reads an answer and gives it on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from spanloop_collector.gateway.record import Call, is_number

NOTHING: Final[Mapping[str, Any]] = {}
# It has all its fields in every answer, null where nobody asked for them; other servers leave them out.
VLLM: Final = "vllm"
# An event with one of these has something to record, even where no tokens are.
_NEWS: Final = re.compile(rb'"(?:usage|error)"\s*+:\s*+[{"]|"finish_reason"\s*+:\s*+"')


class Api:
    """One endpoint. Its methods keep no state: one object serves all calls.

    Fields of unexpected types are left alone everywhere: a back end's peculiarity must not break the agent's call.
    """

    path: ClassVar[str]  # below /v1
    operation: ClassVar[str]  # gen_ai.operation.name
    # numeric request parameter → span attribute
    parameters: ClassVar[Mapping[str, str]] = NOTHING
    # setting of [gateway.sampling] → the request's parameter, and others that mean the same
    sampling: ClassVar[Mapping[str, tuple[str, ...]]] = NOTHING

    def recorded(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The request's parameters as span attributes."""
        return {
            attribute: body[parameter]
            for parameter, attribute in self.parameters.items()
            if parameter in body and is_number(body[parameter])
        }

    def token_fields(self, body: Mapping[str, Any], owner: str) -> Mapping[str, Any]:  # noqa: ARG002  # what another endpoint needs
        """Fields that make a capable back end (`owner`: what it says of itself) give tokens; none that the client set."""
        return NOTHING

    def gives_tokens(self, body: Mapping[str, Any]) -> bool:  # noqa: ARG002  # what another endpoint needs
        """Whether the client itself asks for what belongs on the span."""
        return False

    def absorb(self, call: Call, document: dict[str, Any], *, text: bool = False) -> None:
        """Read a whole answer, or one event of a stream. With `text`, keep what was said, too."""
        raise NotImplementedError

    def stripped(
        self, raw: bytes, document: dict[str, Any], added: Mapping[str, Any], owner: str
    ) -> bytes | None:
        """`raw` (an event, or a whole answer) as that back end says it without `added`; None: not possible in the text.

        Whoever gets None calls `strip` on the document and writes it anew.
        """
        raise NotImplementedError

    def strip(self, document: dict[str, Any], added: Mapping[str, Any], owner: str) -> None:
        """The same on the document."""
        raise NotImplementedError

    def has_news(self, event: bytes) -> bool:
        """Whether an event holds more than a piece of the answer."""
        return _NEWS.search(event) is not None


def names(call: Call, document: Mapping[str, Any]) -> None:
    """Read the answer's id and model."""
    if call.response_id is None and isinstance(document.get("id"), str) and document["id"]:
        call.response_id = document["id"]
    if call.response_model is None:
        call.answered_by(document.get("model"))


def logprobs_of(entries: object) -> list[float]:
    """The numbers of a list of log-probability entries."""
    if not isinstance(entries, list):
        return []
    try:
        values: list[Any] = [entry["logprob"] for entry in entries]
    except (KeyError, TypeError, IndexError):
        values = [entry.get("logprob") for entry in entries if isinstance(entry, dict)]
    # Floats nearly always: one look in C instead of a call a token.
    return values if set(map(type, values)) == {float} else [value for value in values if is_number(value)]
