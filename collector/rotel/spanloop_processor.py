"""A processor for rotel: stamps and limits spans and log records on their way, with the code of Spanloop's own exporter.

    rotel-agent start --otlp-with-trace-processor FILE --otlp-with-logs-processor FILE …

rotel reads this file and calls `process_spans` and `process_logs` with each batch. It ends, with everything that is in its
memory, when a processor raises: so nothing here does. A span that cannot be processed goes on as it came, with the mark
`spanloop.processor_error`. See README.md beside this file.
"""

from __future__ import annotations

import logging
import os
import site
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from rotel_sdk.open_telemetry.common.v1 import AnyValue, ArrayValue, KeyValue, KeyValueList

try:
    from spanloop_exporter import limits
except ModuleNotFoundError:
    # rotel's interpreter has PYTHONPATH, but does not look at the .pth files there, as an editable install needs it to.
    for _folder in filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        site.addsitedir(_folder)
    from spanloop_exporter import limits

log = logging.getLogger("spanloop.rotel")

ERROR: Final = "spanloop.processor_error"
_prepared: Final = limits.Preparation(os.environ, in_agent=False)
_BODY: Final = "body"
# All versions so far turn every array of span, log and resource attributes around when there is a processor in Python
# (convert_value of its py_transform.rs pops from the end), so ours hands them over turned around. The order is tested with
# this version: one that mends it would need `_turned` to go.
TESTED_WITH: Final = "0.0.1a15"
_MISSING: Final = ""  # what an attribute without a value is in the store
_said: set[str] = set()


def _check_version() -> None:
    try:
        found = version("rotel")
    except PackageNotFoundError:
        found = "of a version that cannot be told"
    if found != TESTED_WITH:
        log.warning(
            "this rotel is %s, the processor is tested with %s: see whether lists keep their order",
            found,
            TESTED_WITH,
        )


_check_version()


def process_spans(resource_spans: Any) -> None:
    """Entry point of rotel for traces. Changes the spans in place."""
    try:
        _guarded(resource_spans.resource, _process_resource)
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                _guarded(span, _process_span)
    except BaseException as error:  # see the module's docstring; rotel's own panics are no Exception
        _say(error, "a batch of spans")


def process_logs(resource_logs: Any) -> None:
    """Entry point of rotel for logs. Changes the records in place."""
    try:
        _guarded(resource_logs.resource, _process_resource)
        for scope_logs in resource_logs.scope_logs:
            for record in scope_logs.log_records:
                _guarded(record, _process_record)
    except BaseException as error:  # as above
        _say(error, "a batch of log records")


def _process_resource(resource: Any) -> None:
    if resource is not None:
        read = _Read(resource.attributes)
        read.replace(resource, read.plain)


def _process_span(span: Any) -> None:
    read = _Read(span.attributes)
    read.replace(span, _prepared(read.plain, span.dropped_attributes_count))


def _process_record(record: Any) -> None:
    read = _Read(record.attributes)
    changed = _prepared(read.plain, record.dropped_attributes_count, stamped=False)
    if record.body is not None:
        body, anew = _plain(record.body)
        kept, keys = limits.cut({_BODY: body}, _prepared.max_bytes)
        if keys or anew:
            record.body = _turned(kept[_BODY])
        if keys:
            limits.mark(changed, keys)
    read.replace(record, changed)


class _Read:
    """The attributes of a span, record or resource, read once."""

    def __init__(self, attributes: Any) -> None:
        self.pairs: list[KeyValue] = []
        self.plain: dict[str, Any] = {}
        self._anew: set[str] = set()
        for pair in attributes:
            value, anew = _plain(pair.value)
            if anew:
                self._anew.add(pair.key)
            self.pairs.append(pair)
            self.plain[pair.key] = value

    def replace(self, owner: Any, wanted: Mapping[str, Any]) -> None:
        """Gives `owner` the wanted attributes. All values are made before the first is set: it is all or nothing."""
        new = {
            key: _turned(value)
            for key, value in wanted.items()
            if key in self._anew or key not in self.plain or value is not self.plain[key]
        }
        if not new:
            return
        # A new pair, and not a new value in the old one: what panicked is poisoned, and rotel ends when it meets it again.
        kept = [KeyValue(pair.key, new.pop(pair.key)) if pair.key in new else pair for pair in self.pairs]
        owner.attributes = [*kept, *(KeyValue(key, value) for key, value in new.items())]


def _plain(value: Any) -> tuple[Any, bool]:
    """A value in Python's types, and whether it must be written anew even where nothing in it changes.

    That is so of arrays (see TESTED_WITH), and of an attribute without a value: it is valid OTLP, and rotel panics when it
    is read.
    """
    try:
        inner = value.value
    except BaseException:  # a PanicException of rotel, which is no Exception
        return _MISSING, True
    if isinstance(inner, ArrayValue):
        items = [_plain(item) for item in inner]
        return [item for item, _ in items], len(items) > 1 or any(anew for _, anew in items)
    if isinstance(inner, KeyValueList):
        # Its iterator does not stop before the first of no pairs.
        pairs = [(pair.key, _plain(pair.value)) for pair in inner] if len(inner) else []
        return {key: item for key, (item, _) in pairs}, any(anew for _, (_, anew) in pairs)
    if isinstance(inner, list):
        return bytes(inner), False
    return inner, False


def _turned(value: Any) -> AnyValue:
    """The reverse of `_plain`, with arrays turned around so that rotel turns them back."""
    if isinstance(value, list | tuple):
        array = ArrayValue()
        for item in reversed(value):
            array.append(_turned(item))
        return AnyValue(array)
    if isinstance(value, Mapping):
        pairs = KeyValueList()
        for key, item in value.items():
            pairs.append(KeyValue(key, _turned(item)))
        return AnyValue(pairs)
    return AnyValue(_MISSING if value is None else value)


def _guarded(item: Any, process: Any) -> None:
    try:
        process(item)
    except BaseException as error:  # see the module's docstring
        _say(error, "a span or log record, which goes on as it came")
        try:
            item.attributes.append(KeyValue(ERROR, AnyValue(type(error).__name__)))
        except BaseException as second:
            _say(second, "the mark of an error")


def _say(error: BaseException, what: str) -> None:
    """Logs a kind of problem once, not once a span."""
    kind = f"{what}: {type(error).__name__}"
    if kind not in _said:
        _said.add(kind)
        log.error("cannot process %s: %s; further ones are not logged", kind, error)
