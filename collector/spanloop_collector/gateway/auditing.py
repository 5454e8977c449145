"""Who paused and resumed the gateway, in the store's audit trail."""

from __future__ import annotations

from collections.abc import Callable

Audit = Callable[[str, str], None]


def store_audit(url: str | None) -> Audit:
    """A function that records (action, who) in the store; it blocks, and raises what the store raises.

    Args:
        url: of the store.
    """

    def record(action: str, who: str) -> None:
        # Imported here: the database driver takes 160 ms that no start should wait for.
        import spanloop_store as store
        from spanloop_store import audit

        client = store.connect(store.StoreUrl.parse(url), migrate=False, served=True)
        try:
            audit.record(client, action, "gateway", {}, who)
        finally:
            client.close()

    return record
