"""`spanloop erase` and `audit`, beside a collector that runs and without one: nothing of it is left on this machine."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from pathlib import Path

import pytest
from tests.collector.capture_process import Capture, running, trace_request
from tests.helpers.commands import report, spanloop
from tests.helpers.stores import laid

from spanloop_exporter.files import FileLock
from spanloop_exporter.segments import SegmentLog
from spanloop_exporter.spooling.spool import Spool
from spanloop_store import audit, connect
from spanloop_store.errors import AuditError, StoreUnavailable
from spanloop_store.otlp.frames import frame, frames
from spanloop_store.otlp.signals import Signal, message_type

MARKER = "Zebra-Marmalade-4711"
TRACE = f"{1:032x}"
ADMIN = "a" * 20


def grep(text: str, *folders: Path) -> list[str]:
    done = subprocess.run(
        ["grep", "-rlaF", text, *map(str, folders)], capture_output=True, text=True, check=False
    )
    return done.stdout.split()


def of_user(user: str, text: str, trace: int) -> bytes:
    request = trace_request("chat", trace=trace, **{"user.id": user, "prompt": text})
    data: bytes = request.SerializeToString()
    return data


def send(capture: Capture, body: bytes) -> None:
    request = urllib.request.Request(
        f"{capture.otlp_http}/v1/traces", data=body, headers={"Content-Type": "application/x-protobuf"}
    )
    urllib.request.urlopen(request, timeout=30).close()


def fill_spool(folder: Path, *requests: bytes) -> Spool:
    def overflow(*_: object) -> None:
        raise AssertionError("the disk is full")

    spool = Spool(folder, max_bytes=1 << 30, max_age_s=1e9, overflow=overflow)
    spool.append(Signal.TRACES, requests)
    return spool


def spans_in(folder: Path) -> list[str]:
    found = []
    for path in sorted(folder.glob("*.otlp")):
        for item in frames(path.read_bytes()):
            request = message_type(Signal.TRACES).FromString(bytes(item.payload))
            found += [
                span.trace_id.hex() for group in request.resource_spans for span in group.scope_spans[0].spans
            ]
    return found


def fill_quarantine(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    both = message_type(Signal.TRACES).FromString(of_user("u-1", MARKER, 1))
    both.MergeFromString(of_user("u-2", "kept", 2))
    (folder / "traces-0-0-1.otlp.0.otlp").write_bytes(both.SerializeToString())
    (folder / "traces-0-0-1.otlp.0.otlp.reason.txt").write_text(f"cannot read {MARKER}")
    (folder / "traces-0-0-2.otlp.tail").write_bytes(b"\xff torn " + MARKER.encode() + bytes.fromhex(TRACE))
    (folder / "traces-0-0-3.otlp.tail").write_bytes(b"\xff torn, of somebody else")


def test_a_user_is_gone_from_everything_on_this_machine(tmp_path: Path) -> None:
    store, dead, live = tmp_path / "s", tmp_path / "dead", tmp_path / "live"
    with running(store) as capture:
        with connect(capture.url) as client:
            client.command("ALTER TABLE otel_traces MODIFY COLUMN SpanAttributes CODEC(NONE)")
        for trace, user in ((1, "u-1"), (2, "u-2"), (3, "u-1")):
            send(capture, of_user(user, MARKER if user == "u-1" else "kept", trace))
        fill_quarantine(store / "quarantine")
        fill_spool(
            dead, of_user("u-1", MARKER, 4), of_user("u-2", "kept", 5), of_user("u-1", MARKER, 1)
        ).close()
        (dead / "refused").mkdir()
        (dead / "refused" / "traces-1-1-00000001.otlp").write_bytes(frame(of_user("u-1", MARKER, 6)))
        (dead / "refused" / "traces-1-1-00000001.otlp.reason.txt").write_text("too large")
        agent = fill_spool(live, of_user("u-1", MARKER, 7))
        common = ("--user-id", "u-1", "--store", capture.url, "--spool", dead, "--spool", live)

        looked = report("erase", *common, "--dry-run")
        assert looked["dry_run"]
        assert looked["rows"]["otel_traces"] == 2
        assert looked["traces"] == [f"{number:032x}" for number in (1, 3, 4, 6, 7)]
        assert capture.query("SELECT count() FROM otel_traces") == [(3,)]
        assert len(spans_in(dead)) == 3

        done = report("erase", *common, "--yes")
        assert done["rows"] == looked["rows"]
        assert {
            (Path(hit["path"]).parent.name, hit["items"], bool(hit["kept"])) for hit in done["files"]
        } == {
            ("quarantine", 1, False),
            ("quarantine", 0, False),
            ("dead", 2, False),
            ("refused", 1, False),
            ("live", 1, True),
        }
        assert grep(MARKER, store, dead) == []
        assert spans_in(dead) == [f"{5:032x}"]
        assert not list((dead / "refused").iterdir())
        assert sorted(path.name for path in (store / "quarantine").iterdir()) == [
            "traces-0-0-1.otlp.0.otlp",
            "traces-0-0-1.otlp.0.otlp.reason.txt",
            "traces-0-0-3.otlp.tail",
        ]
        assert capture.query("SELECT SpanAttributes['user.id'] FROM otel_traces") == [("u-2",)]
        assert any("backups" in line for line in done["left"])

        # What the agent that still runs sends later is known.
        send(capture, spans_payload(live))
        capture.flush()
        assert capture.query("SELECT count() FROM otel_traces") == [(2,)]
        again = report("erase", *common, "--yes")
        assert again["rows"]["otel_traces"] == 1
        assert grep(MARKER, store) == []
        agent.close()

        trail = report("audit", "--store", capture.url)
        assert [entry["action"] for entry in trail] == ["erase", "erase"]
        assert trail[0]["subject"] == "user:u-1"
        assert trail[1]["details"]["rows"]["otel_traces"] == 2
        assert MARKER not in json.dumps(trail)
        shown = spanloop("audit", "--store", capture.url, "--since", "1h").stdout.splitlines()
        assert len(shown) == 2
        assert "user:u-1" in shown[0]


def spans_payload(folder: Path) -> bytes:
    (path,) = folder.glob("traces-*.otlp")
    (item,) = frames(path.read_bytes())
    return bytes(item.payload)


def test_what_waits_in_the_log_of_a_collector_that_died(tmp_path: Path) -> None:
    """Acknowledged, never inserted; no collector runs: the command inserts it and takes it out again."""
    store = tmp_path / "s"
    url = laid(store)
    log = SegmentLog(store / "log", Signal.TRACES)
    log.append([of_user("u-1", MARKER, 1), of_user("u-2", "kept", 2)], 2)
    log.close()
    assert grep(MARKER, store)
    empty = tmp_path / "no-spool"
    done = report("erase", "--trace-id", TRACE.upper(), "--store", url, "--spool", empty, "--yes")
    assert done["rows"]["otel_traces"] == 1
    assert not list((store / "log").glob("*.otlp"))
    with connect(url) as client:
        assert client.query("SELECT SpanAttributes['user.id'] FROM otel_traces").result_rows == [("u-2",)]
        assert client.query("SELECT kind, id FROM erasures").result_rows == [("trace", TRACE)]
    text = spanloop("erase", "--trace-id", TRACE, "--store", url, "--spool", empty, "--yes").stdout
    assert "nothing of it is here; what comes later is removed" in text
    assert not empty.exists()


def test_a_half_sent_segment_keeps_its_place(tmp_path: Path) -> None:
    """The target has its first spans already: they go too, and the rest is sent from where it was."""
    from spanloop_collector.stripping import Wanted, in_spool
    from spanloop_exporter.spooling.runs import arrived_of
    from spanloop_store.subjects import Subject

    requests = [
        of_user("u-1", MARKER, 1),
        of_user("u-2", "sent", 2),
        of_user("u-1", MARKER, 3),
        of_user("u-2", "open", 4),
    ]
    spool = fill_spool(tmp_path, *requests)
    spool.seal(Signal.TRACES)
    (segment,) = spool.sealed(Signal.TRACES)
    segment_path = spool.shorten(segment, sum(len(frame(request)) for request in requests[:2])).path
    spool.close()
    hits, traces = in_spool(tmp_path, Wanted(Subject("user", "u-1"), set()), change=True)
    assert [(hit.items, hit.kept) for hit in hits] == [(2, "")]
    assert traces == {f"{1:032x}", f"{3:032x}"}
    (path,) = tmp_path.glob("*.otlp")
    kept = [bytes(item.payload) for item in frames(path.read_bytes())]
    assert kept == [bytes(len(requests[0])), requests[1], requests[3]]
    # One step: a name that says where to go on, and a content of another length, must never be beside each other.
    assert path == segment_path
    assert arrived_of(path) == sum(len(frame(request)) for request in requests[:2])
    assert in_spool(tmp_path, Wanted(Subject("user", "u-1"), set()), change=True) == ([], set())
    hits, _ = in_spool(tmp_path, Wanted(Subject("user", "u-2"), set()), change=True)
    assert not list(tmp_path.glob("*.otlp"))
    assert not list(tmp_path.glob("run-*.lock"))


def test_files_are_read_as_the_tables_are(tmp_path: Path) -> None:
    """A user who is a number, or is named in JSON, is the same in a file that no table has."""
    from spanloop_collector.stripping import Wanted, strip
    from spanloop_store.subjects import Subject

    as_number = trace_request("number", trace=1)
    as_number.resource_spans[0].scope_spans[0].spans[0].attributes.add(key="user.id").value.int_value = 4711
    in_json = trace_request("json", trace=2, **{"metadata": '{"user_id": "4711"}'})
    in_parameters = trace_request(
        "json", trace=3, **{"llm.invocation_parameters": '{"user": "4711", "n": 1}'}
    )
    others = trace_request("other", trace=4, **{"metadata": '{"user_id": 4711', "user.id": "47110"})
    wanted = Wanted(Subject("user", "4711"), set())
    for request, removed in ((as_number, 1), (in_json, 1), (in_parameters, 1), (others, 0)):
        assert strip(Signal.TRACES, request.SerializeToString(), wanted).removed == removed


def test_only_the_admin_token_or_the_local_credential_erases(tmp_path: Path) -> None:
    body = json.dumps({"kind": "trace", "id": TRACE}).encode()

    said = {}

    def ask(capture: Capture, token: str, data: bytes = body) -> int:
        request = urllib.request.Request(
            f"{capture.otlp_http}/erase", data=data, headers={"Authorization": f"Bearer {token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            said.update(json.loads(error.read()))
            return error.code

    with running(tmp_path / "s", SPANLOOP_ADMIN_TOKEN=ADMIN, SPANLOOP_READ_TOKEN="r" * 20) as capture:
        assert [ask(capture, token) for token in ("", "None", "r" * 20, ADMIN[:-1])] == [401] * 4
        assert capture.query("SELECT count() FROM erasures") == [(0,)]
        assert ask(capture, ADMIN) == 200
        for bad in (
            b"{",
            b"[]",
            b'{"kind": "trace"}',
            b'{"kind": "all", "id": "x"}',
            b'{"kind":"trace","id":"x"}',
        ):
            assert ask(capture, ADMIN, bad) == 400
            assert said["error"]
            assert said["hint"]
        rows = capture.query("SELECT who, subject FROM audit")
        assert rows == [("somebody with the admin token, from 127.0.0.1", f"trace:{TRACE}")]


def test_nothing_is_erased_without_a_trail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spanloop_collector.erasing import closed_store, erase_from
    from spanloop_store import StoreUrl
    from spanloop_store.subjects import Subject

    with closed_store(StoreUrl.parse(laid(tmp_path / "s"))) as place:
        client = place.open_client()
        client.command(f"INSERT INTO otel_traces (Timestamp, TraceId) VALUES (now64(9), '{TRACE}')")
        client.command("RENAME TABLE audit TO elsewhere")
        with pytest.raises(AuditError, match="nothing was done"):
            erase_from(place, Subject("trace", TRACE), who="a test")
        client.command("RENAME TABLE elsewhere TO audit")
        assert client.query("SELECT count() FROM otel_traces").result_rows == [(1,)]
        assert client.query("SELECT count() FROM erasures").result_rows == [(0,)]
        assert audit.entries(client) == []


def test_it_asks_first(tmp_path: Path) -> None:
    store = f"chdb://{tmp_path}/s"
    for arguments, said in (
        (("--trace-id", TRACE), "--dry-run"),
        (("--trace-id", TRACE, "--user-id", "u", "--yes"), "one of"),
        (("--yes",), "one of"),
        (("--trace-id", "abc", "--yes"), "is no trace id"),
    ):
        done = spanloop("erase", *arguments, "--store", store)
        assert done.exit_code != 0
        assert said in (done.stderr or str(done.exception))
    assert not list(tmp_path.iterdir())
    missing = spanloop("erase", "--trace-id", TRACE, "--yes", "--store", f"chdb://{tmp_path}/none")
    assert isinstance(missing.exception, StoreUnavailable)
    assert "there is no store" in missing.exception.message
    assert not (tmp_path / "none").exists()


def test_a_spool_of_others_is_left_and_said(tmp_path: Path) -> None:
    from spanloop_collector.stripping import Wanted, in_spool
    from spanloop_store.subjects import Subject

    spool = fill_spool(tmp_path, of_user("u-1", MARKER, 1))
    hits, _ = in_spool(tmp_path, Wanted(Subject("user", "u-1"), set()), change=True)
    assert "running agent" in hits[0].kept
    assert len(grep(MARKER, tmp_path)) == 1
    spool.close()
    assert FileLock.take(next(tmp_path.glob("run-*.lock"))) is not None


def test_an_address_is_found_by_its_pseudonym(tmp_path: Path) -> None:
    """What is stored of it is what redaction made of it, with the salt of the collector or of the agent."""
    from spanloop_exporter.redaction.setup import redactor_for

    address, spool = "bob.miller@example.org", tmp_path / "spool"
    redactor = redactor_for(spool, {})
    assert redactor is not None
    with running(tmp_path / "s") as capture:
        send(capture, of_user(address, "to the collector", 1))
        send(capture, of_user(redactor.redact_text(address), "redacted by the agent", 2))
        send(capture, of_user("other.miller@example.org", "kept", 3))
        done = report("erase", "--user-id", address, "--store", capture.url, "--spool", spool, "--yes")
        assert done["rows"]["otel_traces"] == 2
        assert capture.query("SELECT SpanAttributes['prompt'] FROM otel_traces") == [("kept",)]
        assert capture.query("SELECT count() FROM erasures WHERE kind = 'user'") == [(2,)]
        assert "bob.miller" not in json.dumps(done)
    assert grep("bob.miller", tmp_path / "s") == []


def test_a_store_that_is_a_server(tmp_path: Path) -> None:
    """Over HTTP, with the rights of its user and not of the engine's owner."""
    from tests.collector.served_endpoint import serving
    from tests.store.test_backup import as_server

    with serving(tmp_path) as served:
        client = served.engine.client()
        client.command(
            "INSERT INTO otel_traces (Timestamp, TraceId, SpanAttributes) SELECT now64(9),"
            " leftPad(lower(hex(number + 1)), 32, '0'), map('user.id', if(number < 1200, 'u', 'v')) FROM numbers(1300)"
        )  # more than one query carries
        client.command(
            f"INSERT INTO otel_logs (Timestamp, TraceId, Body) VALUES (now64(9), '{TRACE}', '{MARKER}')"
        )
        arguments = ("--user-id", "u", "--store", as_server(served), "--spool", tmp_path / "no", "--yes")
        done = report("erase", *arguments, SPANLOOP_COLLECTOR="")
        assert done["rows"] == {
            "rewards": 0,
            "otel_logs": 1,
            "otel_traces_trace_id_ts": 1200,
            "otel_traces": 1200,
        }
        assert client.query("SELECT count() FROM otel_traces").result_rows == [(100,)]
        assert client.query("SELECT count() FROM otel_logs").result_rows == [(0,)]
        assert any("SPANLOOP_COLLECTOR" in line for line in done["left"])
