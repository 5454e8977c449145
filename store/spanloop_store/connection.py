"""`connect(url)`: a clickhouse-connect client on whatever the URL names, the embedded engine or a server."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import threading
import urllib.error
import urllib.request
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from spanloop_store.access import TOKEN_VARIABLE
from spanloop_store.engine import Engine, _chdb_client, open_engine
from spanloop_store.errors import StoreUnavailable, StoreUrlError
from spanloop_store.migrate import migrate as migrate_schema
from spanloop_store.owner import read_owner
from spanloop_store.tables import read_tables
from spanloop_store.url import StoreUrl

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

COLLECTOR_VARIABLE = "SPANLOOP_COLLECTOR"
_CONNECT_TIMEOUT_S = 10
# Of clickhouse-connect's arguments: what the URL says elsewhere, what is no text, and what `connect` decides.
_NOT_OPTIONS = {
    "interface", "host", "port", "username", "password", "database", "settings", "pool_mgr", "headers", "native_codec",
    "token_provider", "autogenerate_session_id", "session_id", "dedicated_pool",
}  # fmt: skip
_UNKNOWN_DATABASE = 81  # ClickHouse error codes
_AUTHENTICATION_FAILED = 516
_UNAUTHORIZED = 401  # HTTP

_shared: dict[Path, tuple[Engine, int]] = {}
_shared_lock = threading.RLock()


def connect(
    url: str | StoreUrl | None = None, *, migrate: bool = True, make: bool = True, served: bool = False
) -> Client:
    """Opens a store.

    Embedded: while `spanloop up` runs on it, a client of its HTTP endpoint; else this process opens the engine, and
    closing the client (the last one, if there are several) releases it. A server: a client of its HTTP interface.
    Use one client per thread.

    Args:
        url: the store; None means `SPANLOOP_STORE`, else `chdb:///~/.spanloop`.
        migrate: a server: bring its schema up to date. An embedded store always is.
        make: an embedded store: begin an empty one where there is none; False for what only reads, so that a mistyped
            path is an error and leaves no folders behind.
        served: an embedded store: only through the process that serves it, for those who live beside that process and
            must not hold its lock when it comes back from a crash.

    Raises:
        StoreUrlError: the URL is none, or the server refuses its user, password or database.
        StoreUnavailable: the server does not answer, the engine cannot open the path, or there is no store to read.
        StoreLocked: another process that serves nobody has the embedded store open.
        SchemaError: the schema is newer than this program, or another program's tables do not fit it.
    """
    parsed = StoreUrl.parse(url)
    if not parsed.embedded:
        client = _connect_server(parsed)
        if migrate:
            migrate_schema(client)
        if any(table.cluster for table in read_tables(client).values()):
            _set_up_for_cluster(client)
        return client
    engine = open_engine(parsed)
    if engine is None:
        owner = read_owner(parsed)
        if owner is not None:
            address = urlsplit(owner.clickhouse)
            return _http_client(
                f"the endpoint of process {owner.pid} for {parsed.redacted()}",
                host=address.hostname,
                port=address.port,
                username=owner.user,
                password=owner.password,
                database="default",
                # Its address is this machine's: no proxy of the environment may see its credential.
                pool_mgr=_direct_pool(),
            )
        if served:
            raise StoreUnavailable(
                f"nobody serves the store {parsed.redacted()} now", "is `spanloop up` still running?"
            )
        if not make and not parsed.engine_path.exists():
            raise StoreUnavailable(
                f"there is no store at {parsed.folder}",
                f"check --store, or begin one: spanloop up --store {parsed.redacted()}",
            )
    return _connect_embedded(parsed)


def _set_up_for_cluster(client: Client) -> None:
    """Makes distributed tables behave as one table does."""
    # An insert returns when every shard has its rows, and not when one node has them in a queue on its disk.
    client.set_client_setting("distributed_foreground_insert", "1")
    # A join or IN of two distributed tables asks all shards for both sides; the server's default is to refuse.
    client.set_client_setting("distributed_product_mode", "global")


def _connect_embedded(url: StoreUrl) -> Client:
    base: Any = _chdb_client(url)

    class StoreClient(base):  # made here because its base is imported late
        """A client that lets go of the engine when it is closed."""

        _let_go: Callable[[], Any] | None = None

        def close(self) -> None:
            super().close()
            if self._let_go is not None:
                self._let_go()

    with _shared_lock:
        shared = _shared.get(url.folder)
        if shared is None and (engine := open_engine(url)) is not None:
            return engine.client()
        engine, users = shared or (Engine(url), 0)
        _shared[url.folder] = (engine, users + 1)
        try:
            client = engine._open(StoreClient)
        except BaseException:
            _let_go(url.folder)
            raise
        # A client that is dropped without close() lets go as well.
        client._let_go = weakref.finalize(client, _let_go, url.folder)
    result: Client = client
    return result


def _let_go(folder: Path) -> None:
    with _shared_lock:
        engine, users = _shared.pop(folder, (None, 0))
        if engine is None:
            return
        if users > 1:
            _shared[folder] = (engine, users - 1)
        else:
            engine.close()


def _connect_server(url: StoreUrl) -> Client:
    return _http_client(
        f"the ClickHouse server {url.redacted()}",
        host=url.host,
        port=url.port,
        username=url.user,
        password=url.password,
        database=url.database,
        secure=url.secure,
        **_options(url),
    )


def _direct_pool() -> Any:
    from clickhouse_connect.driver.httputil import default_pool_manager

    return default_pool_manager()


def _options(url: StoreUrl) -> dict[str, str]:
    """The URL's `key=value` pairs, each one that clickhouse-connect knows and the rest of the URL does not say.

    Raises:
        StoreUrlError: another one.
    """
    from clickhouse_connect.driver.httpclient import HttpClient

    known = inspect.signature(HttpClient).parameters.keys() - _NOT_OPTIONS
    for name, _ in url.options:
        if name not in known:
            raise StoreUrlError(
                f"the URL of the ClickHouse server {url.redacted()} has an option {name!r}, which is none",
                f"use one of clickhouse-connect's: {', '.join(sorted(known))}",
            )
    return dict(url.options)


def _http_client(what: str, **arguments: Any) -> Client:
    import clickhouse_connect
    from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError, OperationalError

    try:
        # Without a session a client may be used for overlapping reads, and the endpoint keeps no engine handle for it.
        return clickhouse_connect.get_client(
            interface="https" if arguments.pop("secure", False) else "http",
            **{"autogenerate_session_id": False, "connect_timeout": _CONNECT_TIMEOUT_S, **arguments},
        )
    except OperationalError as error:
        raise StoreUnavailable(
            f"{what} does not answer: {_reason(error)}",
            "check address and port; an embedded store needs no server: --store chdb:///path",
        ) from error
    except DatabaseError as error:
        if error.code == _AUTHENTICATION_FAILED:
            raise StoreUrlError(
                f"{what} refuses user {arguments['username']!r} with this password",
                "check user and password in the store's URL; special characters are written %40 and the like",
            ) from error
        if error.code == _UNKNOWN_DATABASE:
            name = arguments["database"]
            raise StoreUrlError(
                f"{what} has no database {name!r}", f"make it first: CREATE DATABASE {name}"
            ) from error
        raise StoreUnavailable(
            f"{what} answers with an error: {_first_line(error)}", "see the server's log"
        ) from error
    except ClickHouseError as error:
        raise StoreUrlError(f"{what}: {_first_line(error)}", "check the store's URL") from error


def _reason(error: BaseException) -> str:
    """What the operating system said, out of the layers that repeat it around itself."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


@dataclass(frozen=True)
class Flushed:
    """What a collector answered to a flush.

    Args:
        acknowledged: requests that it had acknowledged before the call.
        inserted: of those, how many can be queried now.
    """

    acknowledged: int
    inserted: int


def _flush_request(address: str, timeout_s: float) -> urllib.request.Request:
    token = os.environ.get(TOKEN_VARIABLE)  # a collector beyond loopback asks for it here too
    return urllib.request.Request(  # noqa: S310  # both callers' addresses are http
        f"{address.rstrip('/')}/flush?timeout_s={timeout_s:g}",
        method="POST",
        data=b"",
        headers={"Authorization": f"Bearer {token}"} if token else {},
    )


def flush(url: str | StoreUrl | None = None, timeout_s: float = 60) -> Flushed | None:
    """Waits until everything that the collector acknowledged before this call can be queried.

    Args:
        url: the store. The collector is its live owner; for a server, the address in `SPANLOOP_COLLECTOR`.
        timeout_s: how long to wait, in seconds.

    Returns:
        What the collector says; None where no collector is known, since then nothing is on its way.

    Raises:
        StoreUnavailable: the collector did not answer, or was not done in time.
    """
    parsed = StoreUrl.parse(url)
    owner = read_owner(parsed)
    address = (
        owner.otlp_http if owner else ("" if parsed.embedded else os.environ.get(COLLECTOR_VARIABLE, ""))
    )
    if not address:
        return None
    if not address.startswith(("http://", "https://")):
        raise StoreUrlError(
            f"{COLLECTOR_VARIABLE}={address!r} is no address", "write it as http://collector-host:4318"
        )
    request = _flush_request(address, timeout_s)
    # No proxy: the owner is on this machine, and a collector's address is meant as it is written.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    if owner and owner.gateway:
        # Its spans leave in batches, and they carry the versions and tokens of calls that are long answered. A gateway that
        # is away has none to send.
        with (
            contextlib.suppress(OSError),
            opener.open(_flush_request(owner.gateway, timeout_s), timeout=timeout_s),
        ):
            pass
    try:
        with opener.open(request, timeout=timeout_s + _CONNECT_TIMEOUT_S) as response:
            answer = json.load(response)
        return Flushed(int(answer["acknowledged"]), int(answer["inserted"]))
    except urllib.error.HTTPError as error:
        reason = error.read(2000).decode(errors="replace").strip()
        if error.code == _UNAUTHORIZED:
            raise StoreUnavailable(
                f"the collector at {address} refuses to say what it has stored: HTTP 401 {reason}",
                f"set {TOKEN_VARIABLE} to the token that the collector was started with",
            ) from error
        raise StoreUnavailable(
            f"the collector at {address} was not done within {timeout_s:g} s: HTTP {error.code} {reason}",
            "nothing is lost; look at its log, then run the command again",
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise StoreUnavailable(
            f"the collector at {address} did not answer a flush: {error}", "is `spanloop up` still running?"
        ) from error
