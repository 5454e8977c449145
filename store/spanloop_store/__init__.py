"""Spanloop's store: one URL, one clickhouse-connect client, whether the engine is embedded or a server.

Names are imported when they are asked for. Agents use a part of this package (frames, signals) in their own processes, and
should not pay for the rest: all of it takes 40 ms, clickhouse-connect another 160 with the first connection.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    "point_alias",
    "read_owner",
    "register_model",
    "registry",
    "remove_owner",
    "resolve",
    "write_owner",
]

# Not `migrate`: importing the module of that name would put itself in the function's place.
_MODULES = {
    "connection": ("Flushed", "connect", "flush"),
    "engine": ("OWNER_ROLE", "READER_ROLE", "WRITER_ROLE", "Engine"),
    "errors": (
        "RegistryError",
        "SchemaError",
        "SpanloopError",
        "StoreLocked",
        "StoreUnavailable",
        "StoreUrlError",
    ),
    "owner": ("Owner", "lock_holder", "read_owner", "remove_owner", "write_owner"),
    "registry": ("Alias", "ModelVersion", "point_alias", "register_model", "resolve"),
    "url": ("StoreUrl",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "registry":
        return importlib.import_module(f"{__name__}.registry")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
