"""The exporter's spool: a folder that can be written, space in it, and what was left there, dropped or refused."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from spanloop.doctor.check import Check
from spanloop_exporter.spooling.bounds import REASON_SUFFIX, REFUSED, Report, report
from spanloop_exporter.spooling.settings import read_settings

_FIX = "export SPANLOOP_SPOOL=/folder/that/this/user/may/write"


def check_spool(environ: Mapping[str, str]) -> Iterator[Check]:
    """Spans survive the process: the folder takes them, and what lies there is on its way."""
    wanted = read_settings(environ)
    folder = wanted.folder
    if folder is None:
        yield Check("spool", "FAIL", "this user has no home, and no folder is named", _FIX)
        return
    if trouble := _not_writable(folder):
        yield Check("spool", "FAIL", f"{folder} cannot be written: {trouble}", _FIX)
        return
    try:
        held = report(folder)
    except OSError as error:
        yield Check("spool", "FAIL", f"{folder} cannot be read: {error.strerror or error}", _FIX)
        return
    yield _check_space(folder, held, wanted.max_bytes)
    orphans = held.segments - held.live_segments
    if orphans:
        yield Check(
            "spool left behind",
            "warn",
            f"{orphans} segment(s) of processes that are gone wait in {folder} for the next agent that uses it",
            f"spanloop import {folder}",
        )
    yield from _check_account(folder, held)


def _check_space(folder: Path, held: Report, limit: int) -> Check:
    free = shutil.disk_usage(_existing(folder)).free
    used = held.bytes + held.refused_bytes
    if free + used < limit:
        return Check(
            "spool",
            "warn",
            f"{folder}: {_mib(free)} MiB free on its disk, less than the spool may need ({_mib(limit)} MiB)",
            f"export SPANLOOP_SPOOL_MAX_BYTES={int(max((free + used) // 2, 1 << 20))}",
        )
    if used > 0.8 * limit:
        return Check(
            "spool",
            "warn",
            f"{folder}: {_mib(used)} MiB of {_mib(limit)} MiB used; the oldest spans are dropped when it is full",
            f"export SPANLOOP_SPOOL_MAX_BYTES={limit * 2}",
        )
    return Check(
        "spool", "ok", f"{folder}: {_mib(used)} MiB of {_mib(limit)} MiB used, {_mib(free)} MiB free"
    )


def _check_account(folder: Path, held: Report) -> Iterator[Check]:
    account = held.account
    if account.dropped:
        reasons = "; ".join(f"{items} {reason}" for reason, items in sorted(account.dropped.items()))
        yield Check(
            "spool dropped",
            "warn",
            f"spans or log records lost since the spool was made: {reasons} (last: {account.last})",
            f"mend what this names, then rm {folder}/account.json",
        )
    if held.refused_segments:
        yield Check(
            "spool refused",
            "warn",
            f"{held.refused_segments} segment(s) that the collector refused are kept in {folder / REFUSED}",
            f"cat {folder / REFUSED}/*{REASON_SUFFIX}",
        )


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def _not_writable(folder: Path) -> str:
    """Why a file cannot be written there; nothing stays behind."""
    place = _existing(folder)
    if not place.is_dir():
        return f"{place} is no folder"
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"spanloop doctor")
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _mib(size: float) -> int:
    return int(size) >> 20
