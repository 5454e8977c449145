"""The store that the other commands will use: who owns the embedded one, or whether the server answers."""

from __future__ import annotations

from spanloop.doctor.check import Check


def check_store(url: str, *, collected: bool = False) -> Check:
    """Nothing is opened or created.

    Args:
        url: the store's.
        collected: a collector takes the spans, so an embedded store that nobody serves here is not theirs.
    """
    import spanloop_store as store
    from spanloop_store.errors import SpanloopError

    try:
        parsed = store.StoreUrl.parse(url)
        if parsed.kind == "chdb":
            owner = store.read_owner(parsed)
            if owner is None and collected:
                return Check(
                    "store", "ok", f"{parsed.redacted()} is not served here; the collector has its own"
                )
            if owner is None:
                detail = f"{parsed.redacted()}: nobody serves it now"
                return Check("store", "warn", detail, f"spanloop up --store {url}")
            detail = f"{parsed.redacted()}: owned by process {owner.pid}, {owner.clickhouse}"
            return Check("store", "ok", detail)
        client = store.connect(parsed, migrate=False)
        try:
            return Check("store", "ok", f"{parsed.redacted()}: ClickHouse {client.server_version}")
        finally:
            client.close()
    except SpanloopError as error:
        return Check("store", "FAIL", error.message, error.hint)
