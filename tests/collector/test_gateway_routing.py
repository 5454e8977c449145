"""Canary shares by session, sampling settings by alias, and the settings' file itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.collector.gateway_house import MESSAGES, House, gateway, quick_polls, receiver, send, stub
from tests.helpers.openai_stub import Stub, openai_stub
from tests.helpers.otlp_receiver import Receiver

from spanloop_collector.gateway.errors import GatewayConfigError
from spanloop_collector.gateway.prompts import Applied, Prompts
from spanloop_collector.gateway.routing import canary_of, is_canary, session_of
from spanloop_collector.gateway.settings import TABLES, GatewaySettings
from spanloop_collector.gateway.versions import Snapshot
from spanloop_trainer.config import Config

__all__ = ["quick_polls", "receiver", "stub"]

SNAPSHOT = Snapshot.of(
    [("calculator", 1), ("calculator", 2)], [("calculator", "production", 1), ("calculator", "candidate", 2)]
)


def both(house: House) -> None:
    """Version 1 is production, version 2 the candidate, and the gateway knows."""
    house.registry.point(2)
    house.registry.snapshot = SNAPSHOT
    while b'"calculator"' not in send("GET", house.url + "/v1/models")[1]:
        pass


def test_a_share_of_sessions_gets_the_candidate_and_keeps_it(stub: Stub, receiver: Receiver) -> None:
    with gateway(stub, receiver, limits={"canary": {"calculator": 0.5}}) as house:
        both(house)

        def served(model: str = "calculator", headers: dict[str, str] | None = None, **body: Any) -> str:
            raw = house.client(default_headers=headers or {}).chat.completions.with_raw_response.create(
                model=model, messages=MESSAGES, **body
            )
            return str(raw.headers["x-spanloop-model-version"])

        first = [served(headers={"x-spanloop-session-id": f"s{i}"}) for i in range(16)]
        again = [served(headers={"baggage": f"a=b, session.id=s{i};p=1"}) for i in range(16)]
        users = [served(user=f"s{i}") for i in range(16)]
        caches = [served(extra_body={"prompt_cache_key": f"s{i}"}) for i in range(16)]
        assert first == again == users == caches
        assert set(first) == {"calculator@1", "calculator@2"}
        assert {
            served(model=f"calculator@{name}", user=f"s{i}") for i in range(4) for name in ("production", "1")
        } == {"calculator@1"}
        spans = house.spans(16)[:16]
    assert [span.attributes["spanloop.model.version"] for span in spans] == first
    assert [span.attributes["spanloop.model.canary"] for span in spans] == [
        str(version == "calculator@2").lower() for version in first
    ]
    assert {span.attributes["spanloop.model.alias"] for span in spans} == {"calculator"}
    assert "x-spanloop-session-id" not in stub.headers[0]


@given(st.text(min_size=1), st.floats(0, 1), st.floats(0, 1))
def test_a_growing_share_keeps_its_sessions(session: str, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert is_canary("m", session, high) or not is_canary("m", session, low)
    assert not is_canary("m", session, 0)
    assert is_canary("m", session, 1)


def test_shares_are_what_they_say() -> None:
    taken = sum(is_canary("m", f"session-{i}", 0.1) for i in range(20_000))
    assert 1800 < taken < 2200
    # Two models do not try their candidates on the same sessions.
    both_taken = sum(is_canary("m", f"s{i}", 0.5) and is_canary("n", f"s{i}", 0.5) for i in range(20_000))
    assert 4500 < both_taken < 5500


@pytest.mark.parametrize(
    ("model", "snapshot"),
    [
        ("calculator@production", SNAPSHOT),
        ("other", SNAPSHOT),
        ("calculator", None),
        ("calculator", Snapshot.of([("calculator", 1)], [("calculator", "production", 1)])),
        (
            "calculator",
            Snapshot.of(
                [("calculator", 1)], [("calculator", "production", 1), ("calculator", "candidate", 1)]
            ),
        ),
    ],
    ids=["alias named", "other model", "no registry", "no candidate", "the same version"],
)
def test_no_canary_where_there_is_nothing_to_try(model: str, snapshot: Snapshot | None) -> None:
    assert canary_of(model, {"calculator": 1.0}, snapshot, "s") is None


def test_without_a_session_the_trace_is_one() -> None:
    assert session_of({}, {"user": 7}, 255) == f"{255:032x}"
    assert session_of({"baggage": "session.id=a%20b"}, {}, 0) == "a b"


def test_sampling_is_filled_overridden_and_recorded_as_sent(stub: Stub, receiver: Receiver) -> None:
    limits = {
        "sampling": {
            "calculator@candidate": {"temperature": 1.0, "max_tokens": 99, "top_k": 5},
            "calculator@production": {"temperature": 0.0, "override": True},
        }
    }
    with gateway(stub, receiver, limits=limits) as house:
        both(house)
        body = b'{"model":"calculator@candidate","max_completion_tokens":7,"messages":[ ]}'
        assert send("POST", house.url + "/v1/chat/completions", body)[0] == 200
        for model in ("calculator", "calculator@production", "calculator@2"):
            house.client().chat.completions.create(model=model, messages=MESSAGES, temperature=0.7)
        spans = house.spans(4)
    assert stub.bodies[0] == (
        b'{"model":"calculator@2","max_completion_tokens":7,"messages":[ ],"temperature":1.0,"top_k":5'
        b',"return_token_ids":true,"logprobs":true}'
    )
    assert [request["temperature"] for request in stub.requests] == [1.0, 0.0, 0.0, 0.7]
    assert [span.attributes["gen_ai.request.temperature"] for span in spans] == [1.0, 0.0, 0.0, 0.7]
    assert (
        spans[0].attributes["gen_ai.request.max_tokens"],
        spans[0].attributes["gen_ai.request.top_k"],
    ) == (7, 5)


def test_responses_take_the_settings_that_they_have(receiver: Receiver) -> None:
    limits = {"sampling": {"m": {"temperature": 0.5, "max_tokens": 9, "min_p": 0.1}}}
    with openai_stub(responses=True) as stub, gateway(stub, receiver, limits=limits) as house:
        house.client().responses.create(model="m", input="x")
        assert {
            key: stub.requests[0].get(key)
            for key in ("temperature", "max_output_tokens", "max_tokens", "min_p")
        } == {
            "temperature": 0.5,
            "max_output_tokens": 9,
            "max_tokens": None,
            "min_p": None,
        }


class Shout(Prompts):
    """The promoted system prompt is the old one in capitals."""

    def apply(
        self,
        body: dict[str, Any],
        snapshot: object,  # what the real one asks
        headers: Mapping[str, str] | None = None,  # the same
        session: str = "",  # the same
        *,
        candidate: bool = False,  # the same
    ) -> Applied:
        messages = [
            {**message, "content": message["content"].upper()} if message["role"] == "system" else message
            for message in body["messages"]
        ]
        return Applied({**body, "messages": messages}, requested="polite@1", _version="polite@2")


def test_a_prompt_hook_changes_the_messages_and_leaves_the_rest(stub: Stub, receiver: Receiver) -> None:
    with gateway(stub, receiver, prompts=Shout(None)) as house:
        body = b'{"model":"m", "messages" : [{"role":"system","content":"be nice"}] , "stop":["\\u00e9"]}'
        assert send("POST", house.url + "/v1/chat/completions", body)[0] == 200
        (span,) = house.spans()
    assert stub.bodies[0].startswith(
        b'{"model":"m", "messages" : [{"role":"system","content":"BE NICE"}] , "stop":["\\u00e9"]'
    )
    assert span.attributes["spanloop.prompt.version"] == "polite@2"
    assert span.attributes["spanloop.prompt.requested"] == "polite@1"


def test_settings_are_read_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "spanloop.toml"
    file.write_text(
        "[gateway]\nretries = 0\nidle_timeout_s = 5\n[gateway.canary]\ncalculator = 0.1\n"
        '[gateway.sampling."calculator@candidate"]\ntemperature = 1.0\noverride = true\n[credit]\nmethod = "identical"\n'
    )
    settings = GatewaySettings.read(file)
    assert (settings.retries, settings.idle_timeout_s, settings.canary) == (0, 5, {"calculator": 0.1})
    assert settings.sampling["calculator@candidate"].values == {"temperature": 1.0}
    assert settings.sampling["calculator@candidate"].override
    assert GatewaySettings.read(None) == GatewaySettings()


def test_a_misspelt_table_is_named(tmp_path: Path) -> None:
    file = tmp_path / "spanloop.toml"
    file.write_text("[gatway]\nretries = 0\n")
    with pytest.raises(GatewayConfigError, match=r"spanloop\.toml: gatway: there is no such table"):
        GatewaySettings.read(file)
    # What `build` reads is no mistake here.
    assert frozenset(Config.model_fields) == TABLES


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[]", "gateway: it is a table"),
        ('{"retry": 1}', "gateway.retry: there is no such setting"),
        ('{"retries": 1.5}', "gateway.retries: it is a whole number"),
        ('{"retries": true}', "gateway.retries"),
        ('{"idle_timeout_s": 0}', "gateway.idle_timeout_s: it is a number of seconds"),
        ('{"canary": {"m": 2}}', "gateway.canary.m: it is a share"),
        ('{"canary": {"m@1": 0.5}}', "without @"),
        ('{"sampling": {"m": {"heat": 1}}}', "there is no such setting, but"),
        ('{"sampling": {"m": {"override": 1}}}', "it is true or false"),
        ('{"sampling": {"m": {"temperature": "hot"}}}', "it is a number"),
    ],
)
def test_wrong_settings_are_named(table: str, message: str) -> None:
    with pytest.raises(GatewayConfigError, match=message):
        GatewaySettings.of(json.loads(table))
