"""How a collector is: what /healthz says, the gauges of /metrics, and what `spanloop status` shows of both."""

from __future__ import annotations

import contextlib
import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `spanloop status` reads this module without the collector's own packages
    from spanloop_collector.intake import Intake
    from spanloop_collector.statistics import Gauge

_TIMEOUT_S = 5


@dataclass(frozen=True)
class Quarantined:
    """What lies in a quarantine folder."""

    folder: str
    files: int  # requests that nothing could decode, and torn ends of segments
    bytes: int


@dataclass(frozen=True)
class Health:
    """A collector at one moment."""

    status: str  # ok, warning, degraded (the store takes nothing), refusing (nor does the collector)
    store: str  # `ok`, or why it takes no segments
    disk: str  # `ok`, a warning, or why requests are refused
    log_bytes: int  # acknowledged and not in the store
    lag_s: float  # age of the oldest of them
    free_bytes: int  # where log and store lie
    quarantine: Quarantined
    expired: int = 0  # items refused since the start, of times that the store's retention deletes at once

    @property
    def accepting(self) -> bool:
        """Whether new requests are taken."""
        return self.status != "refusing"

    def as_json(self) -> dict[str, Any]:
        """The body of /healthz."""
        return asdict(self)


def look(intake: Intake, quarantine: Path) -> Health:
    """The state of a running collector."""
    log_bytes = intake.log_bytes
    verdict = intake.space.look(log_bytes)
    error = intake.writer.last_error
    found = quarantined(quarantine)
    status = (
        "refusing"
        if verdict.refuse
        else "degraded"
        if error
        else "warning"
        if verdict.warning or found.files
        else "ok"
    )
    oldest = intake.oldest
    return Health(
        status=status,
        store=error or "ok",
        disk=verdict.refuse or verdict.warning or "ok",
        log_bytes=log_bytes,
        lag_s=0.0 if oldest is None else max(time.time() - oldest, 0.0),
        free_bytes=verdict.free_bytes,
        quarantine=found,
        expired=intake.statistics.total("spanloop_items_expired_total"),
    )


def gauges(intake: Intake, quarantine: Path) -> list[Gauge]:
    """The same as Prometheus gauges."""
    from spanloop_collector.statistics import Gauge

    health = look(intake, quarantine)
    values = {
        "spanloop_log_bytes": health.log_bytes,
        "spanloop_log_limit_bytes": intake.space.max_log_bytes,
        "spanloop_log_lag_seconds": health.lag_s,
        "spanloop_disk_free_bytes": health.free_bytes,
        "spanloop_disk_floor_bytes": intake.space.min_free_bytes,
        "spanloop_quarantine_files": health.quarantine.files,
        "spanloop_quarantine_bytes": health.quarantine.bytes,
        "spanloop_in_flight_bytes": intake.space.in_flight_bytes,
        "spanloop_store_up": int(health.store == "ok"),
        "spanloop_accepting": int(health.accepting),
    }
    return [Gauge(name, value) for name, value in values.items()]


def quarantined(folder: Path) -> Quarantined:
    """What lies in a quarantine folder; reasons and scratch files are not counted."""
    files = size = 0
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith((".otlp", ".tail")):
                files += 1
                size += entry.stat().st_size
    return Quarantined(str(folder), files, size)


def ask(address: str) -> Health | None:
    """What a running collector says of itself; None where it does not answer, or is another version."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{address.rstrip('/')}/healthz", timeout=_TIMEOUT_S) as answer:
            record = json.load(answer)
    except urllib.error.HTTPError as error:
        record = _json(error.read())
    except (OSError, ValueError):
        return None
    try:
        return Health(**{**record, "quarantine": Quarantined(**record["quarantine"])})
    except (TypeError, KeyError):
        return None


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None
