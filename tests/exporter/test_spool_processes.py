"""Processes that end in every way there is, against a target that comes and goes: made, arrived, doubled."""

from __future__ import annotations

import contextlib
import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.collector import stand_in
from tests.collector.capture_process import running
from tests.helpers.otlp_target import Said, Target, otlp_target
from tests.helpers.spooling import Agents, away

from spanloop_exporter.spooling.bounds import FULL, TORN, read_account, refused_in
from spanloop_exporter.spooling.runs import segments_in


@pytest.fixture
def agents(tmp_path: Path) -> Agents:
    return Agents(tmp_path)


@pytest.fixture
def target() -> Iterator[Target]:
    with otlp_target() as running_target:
        yield running_target


ENDS = {
    "end": 0,
    "sys.exit": 3,
    "threads": 0,
    "fork": 0,
    "spawn": 0,
    "prefork": 0,
    "os._exit": 0,
    "SIGKILL": -9,
}


@pytest.mark.parametrize("how", ENDS)
def test_every_end_of_a_process_keeps_every_span(how: str, agents: Agents, target: Target) -> None:
    assert agents.run(how, target.url) == (ENDS[how], "", "")
    if how in ("os._exit", "SIGKILL"):
        # Too short a life to send anything; the next process does.
        assert agents.run("end", target.url, count=1)[0] == 0
    assert target.spans == dict.fromkeys(agents.made, 1)
    assert len(agents.made) == {"threads": 400, "fork": 250, "spawn": 250, "prefork": 250}.get(how, 50) + (
        how in ("os._exit", "SIGKILL")
    )
    assert segments_in(agents.spool) == []


def test_forked_workers_have_files_of_their_own(agents: Agents) -> None:
    assert agents.run("prefork", away())[0] == 0
    assert len({file.run for file in segments_in(agents.spool)}) == 5


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random_moments_of_sending(seed: int, agents: Agents, target: Target) -> None:
    rng = random.Random(seed)
    for _ in range(5):
        sent = len(target.requests) + rng.randrange(1, 8)
        with agents.start("for ever", target.url, OTEL_BSP_SCHEDULE_DELAY="5") as process:
            target.wait(lambda target, sent=sent: len(target.requests) >= sent)  # type: ignore[misc]
            process.kill()
    assert agents.run("end", target.url, count=1)[0] == 0
    lost = set(agents.made) - set(target.spans)
    doubled = [span for span, times in target.spans.items() if times > 1]
    assert (lost, doubled) == (set(), [])
    # The kill may fall between a span's write and the ledger's: at most one more a process.
    assert 0 <= len(target.spans) - len(agents.made) <= 5
    assert read_account(agents.spool).dropped.keys() <= {TORN}


@pytest.mark.parametrize("number", ["SIGTERM", "SIGKILL"])
def test_zero_code_writes_through(number: str, agents: Agents, target: Target) -> None:
    # An hour until the next batch: what arrives at SIGTERM was flushed, what survives SIGKILL was on the disk.
    variables = {"OTEL_BSP_SCHEDULE_DELAY": "3600000"}
    ended = agents.run(number, target.url, zero_code=True, **variables)
    assert ended == (-signal.Signals[number], "", "")
    if number == "SIGKILL":
        assert not target.requests
        assert agents.run("end", target.url, count=1)[0] == 0
    assert target.spans == dict.fromkeys(agents.made, 1)
    assert len(agents.made) == 50 + (number == "SIGKILL")


def test_plain_otlp_has_nothing_of_ours(agents: Agents, target: Target) -> None:
    plain = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_LOGS_EXPORTER": "otlp"}
    assert agents.run("end", target.url, zero_code=True, **plain) == (0, "", "")
    assert target.spans == dict.fromkeys(agents.made, 1)
    assert "OTel-OTLP-Exporter" in target.requests[0][1]["user-agent"]
    assert not agents.spool.exists()


def test_several_agents_at_once_ship_what_the_dead_left_only_once(agents: Agents, target: Target) -> None:
    for _ in range(4):
        assert agents.run("SIGKILL", away())[0] == -9
    with contextlib.ExitStack() as stack:
        together = [stack.enter_context(agents.start("end", target.url)) for _ in range(4)]
        assert [process.wait(60) for process in together] == [0] * 4
    assert target.spans == dict.fromkeys(agents.made, 1)
    assert len(agents.made) == 400
    assert target.repeats == 0


def test_a_target_that_is_away_while_an_agent_runs_and_ends(agents: Agents, target: Target) -> None:
    status, _, errors = agents.run("end", away(), size=100_000)
    assert status == 0
    assert "50 spans stay in" in errors
    assert agents.run("flush", target.url) == (0, "True\n", "")
    assert target.spans == dict.fromkeys(agents.made, 1)
    assert len(agents.made) == 100


def test_a_target_that_is_away_at_first(agents: Agents) -> None:
    endpoint = away()
    with agents.start("wait", endpoint, OTEL_BSP_SCHEDULE_DELAY="10") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        assert "Connection refused" in process.stderr.readline()
        with otlp_target(int(endpoint.rpartition(":")[2])) as target:
            target.wait(lambda target: len(target.spans) == 50)  # by the shipper alone
            assert process.communicate(timeout=60) == ("", f"{endpoint}/v1/traces takes traces again\n")
        assert target.spans == dict.fromkeys(agents.made, 1)


def test_a_target_under_pressure_is_obeyed(agents: Agents, target: Target) -> None:
    for _ in range(3):
        target.answers.append(Said(503, (("Retry-After", "0"),)))
        target.answers.append(
            Said(429, (("Retry-After", "0"),), taken=True)
        )  # the answer to what was taken got lost
    assert agents.run("flush", target.url)[1] == "True\n"
    assert target.spans == dict.fromkeys(agents.made, 1)
    assert (target.repeats, len({body for _, _, body in target.requests})) == (3, 1)


def test_the_bound_is_kept_over_all_processes_and_told(agents: Agents, target: Target) -> None:
    bound = {"SPANLOOP_SPOOL_MAX_BYTES": "400000"}
    for _ in range(3):
        assert agents.run("SIGKILL", away(), count=200, size=1000, **bound)[0] == -9
    status, _, _ = agents.run("end", away(), count=1, **bound)
    assert status == 0
    size = sum(file.size for file in segments_in(agents.spool))
    assert 250_000 < size <= 450_000
    assert agents.run("end", target.url, count=1, **bound)[0] == 0
    arrived, dropped = set(target.spans), read_account(agents.spool).dropped
    made = agents.made
    assert dropped == {FULL: len(made) - len(arrived)}
    assert set(target.spans.values()) == {1}
    assert set(made[-200:]) <= arrived  # what is gone is the oldest


def test_without_a_home_to_write_to_an_agent_sends_by_memory(
    agents: Agents, target: Target, tmp_path: Path
) -> None:
    (tmp_path / "home").write_text("a file")
    variables = {"HOME": str(tmp_path / "home"), "SPANLOOP_SPOOL": ""}
    status, output, errors = agents.run("flush", target.url, **variables)
    assert (status, output) == (0, "True\n")
    assert errors.count("the spool cannot be written") == 1
    assert target.spans == dict.fromkeys(agents.made, 1)


def test_into_the_collector_across_its_death(agents: Agents, tmp_path: Path) -> None:
    """The real one, killed under load and started anew: one row a span."""
    with running(tmp_path / "store") as capture:
        port = capture.otlp_http.rpartition(":")[2]
        with agents.start("for ever", capture.otlp_http, OTEL_BSP_SCHEDULE_DELAY="5") as process:
            assert process.stdout is not None
            process.stdout.readline()
            while len(agents.made) < 300:
                assert process.poll() is None
            capture.kill()
            while len(agents.made) < 900:
                assert process.poll() is None
            process.kill()
    with running(tmp_path / "store", "--otlp-http-port", port) as capture:
        assert agents.run("end", capture.otlp_http, count=1)[0] == 0
        capture.flush()
        stored = Counter(row[0] for row in capture.query("SELECT SpanId FROM otel_traces"))
    assert set(agents.made) <= set(stored)
    assert len(stored) - len(agents.made) <= 1
    assert set(stored.values()) == {1}


def test_straight_into_clickhouse(agents: Agents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the engine keeps schemas there that come as text
    with stand_in.server(tmp_path) as server:
        variables = {"SPANLOOP_STORE": server.url}
        assert agents.run("SIGKILL", away(), **variables)[0] == -9
        assert agents.run("flush", away(), **variables) == (0, "True\n", "")
        assert agents.run("end", away(), **variables) == (0, "", "")
        stored = Counter(row[0] for row in server.query("SELECT SpanId FROM otel_traces"))
        assert stored == dict.fromkeys(agents.made, 1)
        assert len(agents.made) == 150
        collectors = server.query("SELECT DISTINCT collector FROM ingest_segments")
    assert collectors == [("spanloop-exporter",)]
    assert segments_in(agents.spool) == []
    assert refused_in(agents.spool) == []


def test_a_clickhouse_server_that_is_away_keeps_the_spans(agents: Agents) -> None:
    address = away().removeprefix("http://")
    status, output, errors = agents.run(
        "flush", away(), SPANLOOP_STORE=f"clickhouse://user:hidden@{address}/db"
    )
    assert (status, output) == (0, "False\n")
    assert "hidden" not in errors
    assert address in errors
    assert sum(file.size for file in segments_in(agents.spool)) > 50 * 500
