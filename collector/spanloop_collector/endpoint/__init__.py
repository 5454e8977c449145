"""ClickHouse's HTTP protocol over the embedded engine, behind generated credentials."""

from __future__ import annotations

from spanloop_collector.endpoint.app import make_endpoint
from spanloop_collector.endpoint.credentials import Credentials, User

__all__ = ["Credentials", "User", "make_endpoint"]
