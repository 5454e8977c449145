"""OTLP from files: JSON, JSON lines, protobuf, length-delimited protobuf, and gzip of each."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spanloop_collector.errors import ImportFailed
from spanloop_store.errors import InvalidOtlp
from spanloop_store.otlp.check import Checked, check_json, check_protobuf
from spanloop_store.otlp.frames import frames
from spanloop_store.otlp.signals import Signal

_ROOTS = {"resourceSpans": Signal.TRACES, "resource_spans": Signal.TRACES}
_ROOTS |= {"resourceLogs": Signal.LOGS, "resource_logs": Signal.LOGS}
_EXPORT = "name a file from an OTLP file exporter: JSON, JSON lines or protobuf; nothing was stored"
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class Found:
    """One export request of a file."""

    signal: Signal
    checked: Checked
    where: str  # file and line or message number, for messages


def read_requests(path: Path) -> Iterator[Found]:
    """The requests of a file, in order.

    The format is found from the content: a JSON document, JSON lines, one protobuf message, or a sequence of
    length-delimited ones.

    Raises:
        ImportFailed: the file cannot be read, or something in it is no OTLP; the message names file and line.
    """
    try:
        data = path.read_bytes()
        if data.startswith(_GZIP_MAGIC):
            data = gzip.decompress(data)
        data = data.removeprefix(codecs.BOM_UTF8)  # editors of Windows write it
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ImportFailed(
            f"{path}: the gzip data is cut off or broken: {error}",
            "copy or export it again; nothing was stored",
        ) from error
    except OSError as error:
        raise ImportFailed(
            f"{path} cannot be read: {error.strerror or error}", "check the path; nothing was stored"
        ) from error
    if not data.strip():
        raise ImportFailed(f"{path}: the file is empty", "export it again; nothing was stored")
    if data.lstrip()[:1] in (b"{", b"["):
        yield from _read_json(path, data)
    else:
        yield from _read_protobuf(path, data)


def _read_json(path: Path, data: bytes) -> Iterator[Found]:
    whole, broken = None, ""
    try:
        whole = json.loads(data)
    except (ValueError, RecursionError) as error:
        broken = str(error)
    if whole is not None:
        documents = whole if isinstance(whole, list) else [whole]
        for index, document in enumerate(documents, 1):
            where = f"{path}" if len(documents) == 1 else f"{path}, element {index}"
            yield _from_json(document, where)
        return
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)
        except (ValueError, RecursionError) as error:
            # Where not even the first line stands by itself, it was meant as one document.
            where, why = (str(path), broken) if number == 1 else (f"{path}, line {number}", str(error))
            raise ImportFailed(
                f"{where}: no valid JSON: {why}", "correct it and import again; nothing was stored"
            ) from error
        yield _from_json(document, f"{path}, line {number}")


def _from_json(document: object, where: str) -> Found:
    signals = {_ROOTS[key] for key in document if key in _ROOTS} if isinstance(document, dict) else set()
    if len(signals) != 1:
        raise ImportFailed(
            f"{where}: no OTLP request: an object with resourceSpans or with resourceLogs is expected",
            _EXPORT,
        )
    signal = signals.pop()
    try:
        return Found(signal, check_json(signal, json.dumps(document)), where)
    except InvalidOtlp as error:
        raise ImportFailed(f"{where}: {error.message}", "correct it and import again") from error


def _read_protobuf(path: Path, data: bytes) -> Iterator[Found]:
    messages = list(frames(data))
    if messages and messages[-1].end == len(data):
        signal = _signal_of(bytes(messages[0].payload))
        if signal is not None:
            for index, message in enumerate(messages, 1):
                yield _from_protobuf(signal, bytes(message.payload), f"{path}, message {index}")
            return
    signal = _signal_of(data)
    if signal is None:
        cut = f"; {len(messages)} whole messages were found, then it breaks off" if messages else ""
        raise ImportFailed(f"{path}: neither OTLP JSON nor OTLP protobuf{cut}", _EXPORT)
    yield _from_protobuf(signal, data, f"{path}")


def _from_protobuf(signal: Signal, payload: bytes, where: str) -> Found:
    try:
        return Found(signal, check_protobuf(signal, payload), where)
    except InvalidOtlp as error:
        raise ImportFailed(f"{where}: {error.message}", "correct it and import again") from error


def _signal_of(payload: bytes) -> Signal | None:
    """Traces and logs share their outer field numbers: the signal is the one whose items have what they need."""
    best: tuple[int, Signal] | None = None
    for signal in Signal:
        try:
            checked = check_protobuf(signal, payload)
        except InvalidOtlp:
            continue
        # A log record read as a span has no valid ids; a span read as a log record has ids of odd lengths.
        score = checked.items - checked.rejected
        if best is None or score > best[0]:
            best = (score, signal)
    return best[1] if best else None
