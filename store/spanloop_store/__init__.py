"""Spanloop's store: one URL, one clickhouse-connect client, whether the engine is embedded or a server.

Nothing heavy is imported here: clickhouse-connect (160 ms) and chdb come with the first connection.
"""

from __future__ import annotations

from spanloop_store import registry
from spanloop_store.connection import Flushed, connect, flush
from spanloop_store.engine import OWNER_ROLE, READER_ROLE, WRITER_ROLE, Engine
from spanloop_store.errors import (
    RegistryError,
    SchemaError,
    SpanloopError,
    StoreLocked,
    StoreUnavailable,
    StoreUrlError,
)
from spanloop_store.migrate import migrate
from spanloop_store.owner import Owner, lock_holder, read_owner, remove_owner, write_owner
from spanloop_store.registry import Alias, ModelVersion, point_alias, register_model, resolve
from spanloop_store.url import StoreUrl

__all__ = [
    "OWNER_ROLE",
    "READER_ROLE",
    "WRITER_ROLE",
    "Alias",
    "Engine",
    "Flushed",
    "ModelVersion",
    "Owner",
    "RegistryError",
    "SchemaError",
    "SpanloopError",
    "StoreLocked",
    "StoreUnavailable",
    "StoreUrl",
    "StoreUrlError",
    "connect",
    "flush",
    "lock_holder",
    "migrate",
    "point_alias",
    "read_owner",
    "register_model",
    "registry",
    "remove_owner",
    "resolve",
    "write_owner",
]
