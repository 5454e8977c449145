"""The embedded engine: one owner, stale files, clients that let go."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.collector.served_endpoint import serving

from spanloop_store import (
    Engine,
    Owner,
    StoreLocked,
    StoreUnavailable,
    connect,
    flush,
    lock_holder,
    read_owner,
    write_owner,
)

HOLD = """
import sys
from spanloop_store import Engine
engine = Engine(sys.argv[1])
print("open", flush=True)
sys.stdin.readline()
engine.close()
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"chdb://{tmp_path}/a store"


def test_a_second_process_is_locked_out_by_name(url: str) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        assert lock_holder(url) == holder.pid
        with pytest.raises(StoreLocked, match=f"process {holder.pid}"):
            Engine(url)
        with pytest.raises(StoreLocked, match=f"process {holder.pid}"):
            connect(url)
    finally:
        holder.communicate("\n", timeout=60)
    with Engine(url) as engine:
        assert engine.client().command("SELECT 1") == 1


def test_a_killed_owner_blocks_nobody(url: str) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "open\n"
    write_owner(url, Owner(pid=holder.pid, started=1.0, clickhouse="http://127.0.0.1:1"))
    assert read_owner(url) is not None
    holder.kill()
    holder.wait(timeout=60)
    assert read_owner(url) is None
    client = connect(url)
    assert client.command("SELECT 1") == 1
    client.close()


def test_a_left_owner_file_of_a_living_stranger_is_stale(url: str) -> None:
    Engine(url).close()
    write_owner(url, Owner(pid=os.getppid(), started=1.0, clickhouse="http://127.0.0.1:1"))
    assert read_owner(url) is None
    client = connect(url)
    client.close()


def test_owner_file_is_private_and_unknown_fields_are_skipped(url: str) -> None:
    with Engine(url) as engine:
        path = write_owner(url, Owner(pid=os.getpid(), started=1.0, clickhouse="http://x", password="secret"))
        assert path.stat().st_mode & 0o777 == 0o600
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "later": 1}))
        owner = read_owner(url)
        assert owner is not None
        assert owner.password == "secret"
        assert "secret" not in repr(owner)
        assert not engine.closed


def test_closing_the_last_client_releases_the_store(url: str) -> None:
    first = connect(url)
    second = connect(url)
    first.close()
    first.close()
    assert lock_holder(url) == os.getpid()
    assert second.command("SELECT 1") == 1
    second.close()
    assert lock_holder(url) is None


def test_a_dropped_client_releases_the_store(url: str) -> None:
    client = connect(url)
    assert lock_holder(url) == os.getpid()
    del client
    assert lock_holder(url) is None


def test_a_client_of_an_open_engine_leaves_it_open(url: str) -> None:
    with Engine(url) as engine:
        client = connect(url)
        client.close()
        assert engine.client().command("SELECT 1") == 1


def test_rows_survive_a_reopening(url: str) -> None:
    for count in (1, 2):
        client = connect(url)
        client.command(f"INSERT INTO otel_logs (Body) VALUES ('{count}')")
        assert client.command("SELECT count() FROM otel_logs") == count
        client.close()


def test_one_store_at_a_time_in_a_process(url: str, tmp_path: Path) -> None:
    with Engine(url), pytest.raises(StoreUnavailable) as caught:
        Engine(f"chdb://{tmp_path}/other")
    assert "close" in caught.value.hint


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreUnavailable, match="file"):
        connect(f"chdb://{tmp_path}/file/store")


@pytest.mark.parametrize(("room", "file"), [(0, "lock"), (100, "access.xml")], ids=["lock", "access.xml"])
def test_a_disk_without_room_is_one_message(url: str, room: int, file: str) -> None:
    """By a limit on the size of files, which the system reports as it does a full disk."""
    program = (
        "import resource, sys; from spanloop_store import Engine, StoreUnavailable\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))\n"
        "try: Engine(sys.argv[1])\n"
        "except StoreUnavailable as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program, url], capture_output=True, text=True)
    assert f"{file} cannot be written" in done.stdout, done.stderr
    assert "next: make room" in done.stdout
    assert lock_holder(url) is None


def test_a_closed_port_is_one_message() -> None:
    with pytest.raises(StoreUnavailable) as caught:
        connect("clickhouse://u:topsecret@127.0.0.1:1/db")
    assert "topsecret" not in str(caught.value)
    assert caught.value.hint


def test_a_proxy_of_the_environment_does_not_see_the_owners_credential(tmp_path: Path) -> None:
    ask = (
        "import sys; from spanloop_store import connect; print(connect(sys.argv[1]).command('SELECT 6 * 7'))"
    )
    with serving(tmp_path) as served:
        writer, url = served.credentials.writer, served.engine.url
        address = f"http://127.0.0.1:{served.port}"
        write_owner(url, Owner(os.getpid(), 1.0, address, user=writer.name, password=writer.password))
        environ = {**os.environ, "http_proxy": "http://127.0.0.1:1", "no_proxy": ""}
        asked = subprocess.run(
            [sys.executable, "-c", ask, url.redacted()], env=environ, capture_output=True, text=True
        )
    assert asked.stdout == "42\n", asked.stderr


def test_an_engine_that_closed_its_files_lets_nobody_else_in(url: str, tmp_path: Path) -> None:
    other = f"chdb://{tmp_path}/other"
    with Engine(url) as engine:
        engine.close_files()
        with Engine(other):
            assert lock_holder(url) == lock_holder(other) == os.getpid()
        with pytest.raises(StoreUnavailable, match="was closed"):
            engine.client()
    with Engine(other):
        # Its lock may have the descriptor that the first one's had.
        engine.close()
        assert lock_holder(url) is None
        assert lock_holder(other) == os.getpid()


def test_flush_without_a_collector_is_nothing(url: str) -> None:
    assert flush(url) is None
