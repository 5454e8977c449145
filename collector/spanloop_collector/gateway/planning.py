"""From a request to what is sent: version, pool, prompt, sampling settings. Resolved once, whatever the registry says later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from spanloop_collector.gateway.apis.base import NOTHING, Api
from spanloop_collector.gateway.errors import bad_request, no_upstream
from spanloop_collector.gateway.jsonedit import load, with_members
from spanloop_collector.gateway.pools import Pool
from spanloop_collector.gateway.prompts import Prompts
from spanloop_collector.gateway.record import Call
from spanloop_collector.gateway.routing import CANDIDATE, canary_of, is_canary, session_of
from spanloop_collector.gateway.settings import GatewaySettings, SamplingSettings
from spanloop_collector.gateway.upstreams import Upstreams
from spanloop_collector.gateway.versions import PRODUCTION, Versions

VERSION_HEADER: Final = "x-spanloop-model-version"


@dataclass(frozen=True, slots=True)
class Plan:
    """One request, resolved: it keeps these until its last byte."""

    api: Api
    pool: Pool
    raw: bytes
    body: Mapping[str, Any]  # as the client sent it
    changes: Mapping[str, Any]  # top-level members to set
    headers: dict[str, str] = field(default_factory=dict)  # for the answer

    def for_backend(self, owner: str, refused: set[tuple[str, str]]) -> tuple[bytes, Mapping[str, Any]]:
        """The bytes for one back end, and what was added to ask it for tokens.

        Args:
            owner: of the back end; "": it gives none.
            refused: (endpoint, field) that it does not take.
        """
        added = self.api.token_fields(self.body, owner) if owner else NOTHING
        if refused:
            added = {name: value for name, value in added.items() if (self.api.path, name) not in refused}
        changes = {**self.changes, **added} if added else self.changes
        return (with_members(self.raw, self.body, changes) if changes else self.raw), added


class Planner:
    """Makes plans; one for the life of the gateway.

    Args:
        upstreams: where calls can go.
        versions: what names mean.
        settings: canary shares and sampling.
        prompts: the hook for system prompts; None: they are sent as they are.
    """

    def __init__(
        self,
        upstreams: Upstreams,
        versions: Versions,
        settings: GatewaySettings,
        prompts: Prompts | None = None,
    ) -> None:
        self._upstreams = upstreams
        self._versions = versions
        self._settings = settings
        self._prompts = prompts

    async def plan(
        self,
        api: Api,
        call: Call,
        raw: bytes,
        body: dict[str, Any],
        headers: Mapping[str, str],
        trace_id: int,
    ) -> Plan:
        """Resolve a request; what it will run with is noted on `call`.

        Raises:
            ClientError: 404, no such version or no back end; 503, an alias while the registry is unknown.
        """
        model = call.requested_model
        name = model
        if self._settings.canary and model in self._settings.canary:
            session = session_of(headers, body, trace_id)
            call.canary = canary_of(model, self._settings.canary, self._versions.snapshot, session)
            if call.canary:
                name = f"{model}@{CANDIDATE}"
        call.version = await self._versions.resolve(name)
        call.sent_model = call.version or model
        pool = self._upstreams.find(call.sent_model)
        if pool is None:
            raise no_upstream(f"model {model!r}")
        changes: dict[str, Any] = {}
        if self._prompts is not None and api.operation == "chat":
            session = session_of(headers, body, trace_id)
            applied = self._prompts.apply(
                body,
                self._versions.snapshot,
                headers,
                # One user or cache key goes on over many conversations: no evidence of what belongs to one.
                session_of(headers, {}, trace_id),
                candidate=is_canary(model, session, self._settings.canary.get(model, 0.0)),
            )
            call.prompt = applied
            if applied.body is not body:
                changes = {key: value for key, value in applied.body.items() if body.get(key) != value}
        if self._settings.sampling and (settings := self._sampling(name, call.version)) is not None:
            changes |= _sampled(api, body, settings)
        call.sampling = api.recorded({**body, **changes} if changes else body)
        if call.sent_model != model:
            changes["model"] = call.sent_model
        return Plan(api, pool, raw, body, changes, {VERSION_HEADER: call.version} if call.version else {})

    def _sampling(self, name: str, version: str | None) -> SamplingSettings | None:
        """Settings of the name that was asked for; NAME and NAME@production are one."""
        found = self._settings.sampling.get(name)
        if found is None and name.endswith(f"@{PRODUCTION}"):
            found = self._settings.sampling.get(name.partition("@")[0])
        if found is None and "@" not in name and version is not None:
            found = self._settings.sampling.get(f"{name}@{PRODUCTION}")
        return found


def _sampled(api: Api, body: Mapping[str, Any], settings: SamplingSettings) -> dict[str, Any]:
    """The request's members that the settings change."""
    changes: dict[str, Any] = {}
    for setting, value in settings.values.items():
        fields = api.sampling.get(setting)
        if fields is None:
            continue  # the endpoint has nothing like it
        given = [name for name in fields if body.get(name) is not None]
        if not given:
            changes[fields[0]] = value
        elif settings.override:
            changes |= dict.fromkeys(given, value)
    return changes


def parse_body(raw: bytes) -> dict[str, Any]:
    """The request as an object with a model's name in it.

    Raises:
        ClientError: 400, in OpenAI's form.
    """
    body = load(raw)
    if not isinstance(body, dict):
        raise bad_request("the request body is not a JSON object", "invalid_json")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise bad_request(
            'the request names no model. Next: set "model", for example to "NAME@candidate".',
            "model_missing",
            "model",
        )
    try:
        model.encode()
    except UnicodeEncodeError:
        raise bad_request("the model's name is no Unicode text", "model_invalid", "model") from None
    return body


def named_in(api: Api, status: int, text: str, added: Mapping[str, Any]) -> set[tuple[str, str]]:
    """What of the added a refusal may be about, as (endpoint, field): the call may be repeated without it.

    Many errors repeat the whole request (pydantic's do), so that only an answer to the repeated call says what it was about.
    """
    if status not in (400, 403, 422):
        return set()
    return {
        (api.path, name) for name in added if any(word in text for word in _REFUSED_AS.get(name, (name,)))
    }


# How a refusal names a field: "logprobs are not supported with this model".
_REFUSED_AS: Final[Mapping[str, tuple[str, ...]]] = {
    "logprobs": ("logprob",),
    "include": ("logprob", "include"),
}
