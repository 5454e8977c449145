"""`/embeddings`: a version and a span, and no tokens to learn from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from spanloop_collector.gateway.apis.base import Api, names
from spanloop_collector.gateway.record import Call, error_text, integer


class Embeddings(Api):
    """`POST /v1/embeddings`."""

    path: ClassVar[str] = "/embeddings"
    operation: ClassVar[str] = "embeddings"
    parameters: ClassVar[Mapping[str, str]] = {"dimensions": "gen_ai.embeddings.dimension.count"}

    def absorb(self, call: Call, document: dict[str, Any], *, text: bool = False) -> None:  # noqa: ARG002  # what another endpoint needs
        """Read a whole answer."""
        names(call, document)
        usage = document.get("usage")
        if isinstance(usage, dict):
            call.input_tokens = integer(usage.get("prompt_tokens"), call.input_tokens)
        if error := document.get("error"):
            call.fail("upstream_error", error_text(error))
