"""The embedded engine: one chDB per process and path, behind a lock that names its holder."""

from __future__ import annotations

import atexit
import fcntl
import logging
import os
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast
from xml.sax.saxutils import escape

from spanloop_store import memory
from spanloop_store.errors import StoreLocked, StoreUnavailable
from spanloop_store.migrate import migrate
from spanloop_store.owner import remove_owner
from spanloop_store.url import StoreUrl

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

log = logging.getLogger(__name__)

WRITER_ROLE: Final = "spanloop_writer"
READER_ROLE: Final = "spanloop_reader"
OWNER_ROLE: Final = "spanloop_owner"
# A probe for a live owner takes the lock for microseconds; more than this is a real holder.
_LOCK_PATIENCE_S = 1.0
_LOCK_RETRY_S = 0.02

# chDB knows one user. Roles take rights away from a handle (SET ROLE), enforced by the engine itself: a network
# handle has no SOURCES grant, so table functions and engines that reach files, URLs or other servers are refused
# there however the query spells them, while the owner's own handles keep every right. Nobody may make a second
# database: with one, chDB 26.9 aborts the process when the path is opened again.
_ACCESS_XML = """<clickhouse>
  <users_config>{path}</users_config>
  <access_control_improvements>
    <table_engines_require_grant>true</table_engines_require_grant>
  </access_control_improvements>
  <max_server_memory_usage>{memory}</max_server_memory_usage>
  <backups><allowed_path>{backups}</allowed_path></backups>
  <profiles><default/></profiles>
  <quotas><default/></quotas>
  <roles>
    <spanloop_owner><grants><query>GRANT ALL ON *.*</query></grants></spanloop_owner>
    <{writer}><grants>
      <query>GRANT SHOW, SELECT, CREATE TEMPORARY TABLE ON *.*</query>
      <query>GRANT INSERT, ALTER TABLE, ALTER VIEW, CREATE TABLE, CREATE VIEW, DROP TABLE, DROP VIEW, TRUNCATE, OPTIMIZE ON default.*</query>
      {engines}
    </grants></{writer}>
    <{reader}><grants><query>GRANT SHOW, SELECT ON *.*</query></grants></{reader}>
  </roles>
  <users><default>
    <password></password>
    <networks><ip>127.0.0.1</ip><ip>::1</ip></networks>
    <profile>default</profile>
    <quota>default</quota>
    <grants><query>GRANT spanloop_owner</query><query>GRANT {writer}</query><query>GRANT {reader}</query></grants>
  </default></users>
</clickhouse>
"""
# Engines whose rows live in this store and nowhere else.
_NETWORK_ENGINES = (
    "MergeTree",
    "ReplacingMergeTree",
    "SummingMergeTree",
    "AggregatingMergeTree",
    "CollapsingMergeTree",
    "VersionedCollapsingMergeTree",
    "Memory",
    "Log",
    "TinyLog",
    "StripeLog",
    "Null",
    "Join",
    "Set",
    "View",
    "MaterializedView",
)


class Engine:
    """The open embedded engine of one store.

    chDB allows one path open at a time in a process, and one process per path: `Engine` takes an exclusive lock on
    `<path>/lock` before it touches the files. The schema is brought up to date on opening.

    Do not use it across `fork`: a child that touches the parent's engine hangs, so a child gets `StoreUnavailable`.

    Args:
        url: an embedded store URL.

    Raises:
        StoreLocked: another process (named) has it open.
        StoreUnavailable: chdb is not installed, or cannot open the path.
        StoreUrlError: the URL names a server.
        SchemaError: the store's schema is newer than this program, or another program's tables do not fit it.
        StoreSettingError: `SPANLOOP_ENGINE_MEMORY` is no amount of memory.
    """

    def __init__(self, url: str | StoreUrl | None = None) -> None:
        self.url = StoreUrl.parse(url)
        self._pid = os.getpid()
        self._closed = False
        self._clients: weakref.WeakSet[Any] = weakref.WeakSet()
        self._clients_lock = threading.Lock()
        for folder in (self.url.folder, self.url.log_path, self.url.quarantine_path):
            _make_folder(folder)
        self._lock = _take_lock(self.url)
        try:
            # Whoever holds the lock is the only owner: a file that lies here was left by a process that died.
            remove_owner(self.url)
            self._query_bytes = int(memory.engine_bytes() * memory.QUERY_SHARE)
            self._access = _write_access(self.url)
            # Kept open so that the engine lives as long as this object, whatever clients come and go.
            self._keeper = self._open()
            migrate(self._keeper)
        except BaseException:
            self.close()
            raise
        _OPEN[self.url.folder] = self

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def client(self) -> Client:
        """A new clickhouse-connect client on this engine, with every right.

        Each client owns one engine handle and serves one call at a time: keep one per thread. Closing it leaves the
        engine open.

        Raises:
            StoreUnavailable: the engine is closed, or this is a forked child.
        """
        client: Client = self._open()
        return client

    def handle(self, role: str) -> Any:
        """A raw `chdb` connection whose rights and memory are cut down to a role, for queries of network users.

        Args:
            role: `WRITER_ROLE`, `READER_ROLE`, or `OWNER_ROLE` for statements that were checked by other means.

        Raises:
            StoreUnavailable: the engine is closed, or this is a forked child.
        """
        self._check()
        from chdb import connect as open_handle
        from clickhouse_connect.driver._chdbclient import build_connection_string

        connection: Any = cast(Any, open_handle)(
            build_connection_string(str(self.url.engine_path), self._options())
        )
        connection.query(f"SET ROLE {role}", "Null")
        if role != OWNER_ROLE:
            # Inserts and merges run without it: whatever is asked, they find memory left.
            connection.query(f"SET max_memory_usage = {self._query_bytes}", "Null")
        return connection

    def close(self) -> None:
        """Closes every client and handle made here, then releases the lock; again is fine."""
        self.close_files()
        # Once: another engine's lock may have the descriptor's number by then.
        descriptor, self._lock = self._lock, -1
        _release_lock(descriptor)

    def close_files(self) -> None:
        """Closes every client and handle, so that another path can be opened, and keeps everyone else out until `close`."""
        if self._closed:
            return
        self._closed = True
        _OPEN.pop(self.url.folder, None)
        if os.getpid() == self._pid:
            with self._clients_lock:
                clients = list(self._clients)
            for client in clients:
                client.close()

    def _options(self) -> dict[str, str]:
        return {"config-file": str(self._access)}

    def _check(self) -> None:
        if self._closed:
            raise StoreUnavailable(f"the store {self.url.redacted()} was closed", "open it again")
        if os.getpid() != self._pid:
            raise StoreUnavailable(
                f"the store {self.url.redacted()} belongs to process {self._pid}; this is its child {os.getpid()}",
                "start workers with the 'spawn' method, or connect in the child only after the parent closed",
            )

    def _open(self, kind: type[Any] | None = None) -> Any:
        """A client of a class derived from clickhouse-connect's chDB client."""
        self._check()
        kind = kind or _chdb_client(self.url)
        try:
            client = kind(path=str(self.url.engine_path), database="default", chdb_options=self._options())
        except Exception as error:
            from clickhouse_connect.driver.exceptions import ClickHouseError

            if not isinstance(error, ClickHouseError | RuntimeError):
                raise
            others = [str(path) for path in _OPEN if path != self.url.folder]
            hint = (
                f"a process opens one store at a time: close {others[0]} first"
                if others
                else f"check that {self.url.engine_path} is a store of Spanloop and that its disk is not full"
            )
            raise StoreUnavailable(f"the engine cannot open {self.url.redacted()}: {error}", hint) from error
        with self._clients_lock:
            self._clients.add(client)
        return client

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_OPEN: dict[Path, Engine] = {}


@atexit.register
def _close_at_exit() -> None:
    # An engine that is open while the interpreter is torn down complains, and may abort.
    for engine in list(_OPEN.values()):
        engine.close()


def open_engine(url: StoreUrl) -> Engine | None:
    """The engine that this process has open on a store, if it has."""
    engine = _OPEN.get(url.folder)
    return engine if engine is not None and engine._pid == os.getpid() else None


def _chdb_client(url: StoreUrl) -> type[Any]:
    try:
        import chdb  # noqa: F401  # only to see that it is there
        from clickhouse_connect.driver._chdbclient import ChdbClient
    except ImportError as error:
        raise StoreUnavailable(
            f"the embedded store {url.redacted()} needs the package chdb: {error}",
            "pip install 'spanloop[collector]', or name a server: --store clickhouse://user:password@host:8123/db",
        ) from error
    return ChdbClient


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnavailable(
            f"the store's folder {folder} cannot be made: {error.strerror}",
            "name another: --store chdb:///path/that/you/may/write",
        ) from error


def _take_lock(url: StoreUrl) -> int:
    try:
        descriptor = os.open(url.lock_path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StoreUnavailable(
            f"{url.lock_path} cannot be opened: {error.strerror}", "check the folder's owner and rights"
        ) from error
    deadline = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(_LOCK_RETRY_S)
                continue
            holder = os.pread(descriptor, 32, 0).decode().strip()
            os.close(descriptor)
            who = "this process" if holder == str(os.getpid()) else f"process {holder or 'unknown'}"
            raise StoreLocked(
                f"the store {url.redacted()} is already open in {who}; it is untouched",
                f"stop it (kill {holder}), or work through it while it runs `spanloop up`"
                if holder and holder != str(os.getpid())
                else "close the other engine first",
            ) from None
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    except OSError as error:
        os.close(descriptor)
        raise _cannot_write(url.lock_path, error) from error
    _LOCKS.add(descriptor)
    return descriptor


def _cannot_write(path: Path, error: OSError) -> StoreUnavailable:
    return StoreUnavailable(
        f"{path} cannot be written: {error.strerror}", "make room on its disk, or check the folder's rights"
    )


# flock survives fork: a child that lives on would keep the store locked after its parent died.
_LOCKS: set[int] = set()


def _drop_locks_in_child() -> None:
    for descriptor in _LOCKS:
        os.close(descriptor)
    _LOCKS.clear()


os.register_at_fork(after_in_child=_drop_locks_in_child)


def _release_lock(descriptor: int) -> None:
    if descriptor in _LOCKS:
        _LOCKS.discard(descriptor)
        os.close(descriptor)


def _write_access(url: StoreUrl) -> Path:
    path = url.folder / "access.xml"
    engines = "\n      ".join(f"<query>GRANT TABLE ENGINE ON {name}</query>" for name in _NETWORK_ENGINES)
    text = _ACCESS_XML.format(
        path=escape(str(path)),
        memory=memory.engine_bytes(),
        backups=escape(str(url.folder / "backups")),
        writer=WRITER_ROLE,
        reader=READER_ROLE,
        engines=engines,
    )
    try:
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
    except OSError as error:
        raise _cannot_write(path, error) from error
    return path
