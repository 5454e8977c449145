"""A processor for rotel: redacts, stamps and limits spans and log records on their way, with the code of Spanloop's exporter.

    rotel-agent start --otlp-with-trace-processor FILE --otlp-with-logs-processor FILE …

rotel reads this file and calls `process_spans` and `process_logs` with each batch. It ends, with everything that is in its
memory, when a processor raises: so nothing here does. A span that cannot be redacted is taken out; one that cannot be
limited goes on redacted, with the mark `spanloop.processor_error`. See README.md beside this file.
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

from spanloop_exporter.errors import RedactionError
from spanloop_exporter.redaction.redactor import Redactor
from spanloop_exporter.redaction.setup import redactor_for
from spanloop_exporter.redaction.streams import redact_stream
from spanloop_exporter.spooling.settings import read_settings

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
        if not _passes(resource_spans, _redact_resource):
            resource_spans.scope_spans = []
            return
        for scope_spans in resource_spans.scope_spans:
            if not _passes(scope_spans, _redact_scope):
                scope_spans.spans = []
                continue
            spans = list(scope_spans.spans)
            kept = [span for span in spans if _passes(span, _redact_span)]
            if len(kept) < len(spans):
                scope_spans.spans = kept
            for span in scope_spans.spans:
                _guarded(span, _process_span)
        _guarded(resource_spans.resource, _process_resource)
    except BaseException as error:  # see the module's docstring; rotel's own panics are no Exception
        _say(error, "a batch of spans")
        _empty(resource_spans, "scope_spans")


def process_logs(resource_logs: Any) -> None:
    """Entry point of rotel for logs. Changes the records in place."""
    try:
        if not _passes(resource_logs, _redact_resource):
            resource_logs.scope_logs = []
            return
        for scope_logs in resource_logs.scope_logs:
            if not _passes(scope_logs, _redact_scope):
                scope_logs.log_records = []
                continue
            records = list(scope_logs.log_records)
            kept = [record for record in records if _passes(record, _redact_record)]
            if len(kept) < len(records):
                scope_logs.log_records = kept
            for record in scope_logs.log_records:
                _guarded(record, _process_record)
        _guarded(resource_logs.resource, _process_resource)
    except BaseException as error:  # as above
        _say(error, "a batch of log records")
        _empty(resource_logs, "scope_logs")


def _set_up() -> tuple[Redactor | None, RedactionError | None]:
    """The redactor, None where redaction is off; or why nothing may pass."""
    try:
        return redactor_for(read_settings().folder), None
    except RedactionError as error:
        log.error("nothing passes, since redaction cannot run: %s; next: %s", error.message, error.hint)
        return None, error


_redactor, _refusal = _set_up()


def _passes(item: Any, redact: Any) -> bool:
    """Redacts in place; False: it could not be done, and the item must not go on."""
    if _refusal is not None:
        return False
    try:
        if _redactor is not None:
            redact(item, _redactor)
    except BaseException as error:  # see the module's docstring
        _say(error, "what cannot be redacted, and is taken out")
        return False
    return True


def _empty(batch: Any, name: str) -> None:
    """Takes everything out of a batch of which nobody knows what has been redacted."""
    if _redactor is not None or _refusal is not None:
        setattr(batch, name, [])


def _redact_resource(batch: Any, redactor: Redactor) -> None:
    if batch.resource is not None:
        _redact_attributes(batch.resource, redactor)
    _redact_texts(batch, redactor, "schema_url")


def _redact_scope(batch: Any, redactor: Redactor) -> None:
    if batch.scope is not None:
        _redact_texts(batch.scope, redactor, "name", "version")
        _redact_attributes(batch.scope, redactor, last=True)
    _redact_texts(batch, redactor, "schema_url")


def _redact_span(span: Any, redactor: Redactor) -> None:
    _redact_texts(span, redactor, "name", "trace_state")
    events = list(span.events)
    said = _redact_stream(events, redactor) if len(events) > 1 else False
    for event in events:
        _redact_texts(event, redactor, "name")
        said = _redact_attributes(event, redactor, last=True) or said
    for link in span.links:
        _redact_texts(link, redactor, "trace_state")
        _redact_attributes(link, redactor, last=True)
    if span.status is not None:
        _redact_texts(span.status, redactor, "message")
    _redact_attributes(span, redactor, said=said)


def _redact_record(record: Any, redactor: Redactor) -> None:
    _redact_texts(record, redactor, "severity_text", "event_name")
    if record.body is not None:
        body, _ = _plain(record.body)
        changed = limits.redacted_value(body, redactor)
        if changed is not body:
            record.body = _value(changed)
    _redact_attributes(record, redactor)


def _redact_texts(owner: Any, redactor: Redactor, *names: str) -> None:
    for name in names:
        text = getattr(owner, name)
        changed = redactor.redact_text(text) if text else text
        if changed != text:
            setattr(owner, name, changed)


def _redact_attributes(owner: Any, redactor: Redactor, *, said: bool = False, last: bool = False) -> bool:
    """Whether it changed any; of a span, token ids are left off then, and where its events `said` something.

    Args:
        owner: what has attributes.
        redactor: what to look for.
        said: whether the span's events were changed.
        last: whether nothing else here writes these attributes, so that arrays have to be turned now.
    """
    read = _Read(owner.attributes)
    wanted = limits.redacted(read.plain, read.plain, redactor)
    if said:
        limits.without_token_ids(wanted)
    changed = wanted != read.plain
    anew = read.anew if last else set()
    if not changed and not anew and len(read.pairs) == len(read.plain):
        return False
    # In place: events, links and scopes take no new list.
    attributes = owner.attributes
    done: set[str] = set()  # of two pairs with one key, only the last has been looked at
    for index in range(len(read.pairs) - 1, -1, -1):
        key = read.pairs[index].key
        if key not in wanted or key in done:
            del attributes[index]
        elif wanted[key] is not read.plain[key] or key in anew:
            attributes[index] = KeyValue(key, _value(wanted[key], turn=last))
        done.add(key)
    for key in wanted.keys() - read.plain.keys():
        attributes.append(KeyValue(key, _value(wanted[key], turn=last)))
    return changed


def _redact_stream(events: list[Any], redactor: Redactor) -> bool:
    """Looks at what the events of one name say under one key as one text."""
    said: dict[tuple[str, str], list[tuple[Any, int, str]]] = {}
    for event in events:
        read = _Read(event.attributes)
        for index, pair in enumerate(read.pairs):
            value = read.plain[pair.key]
            if isinstance(value, str):
                said.setdefault((event.name, pair.key), []).append((event, index, value))
    found = False
    for (_, key), pieces in said.items():
        changed = redact_stream([text.encode() for _, _, text in pieces], redactor)
        for (event, index, _), text in zip(pieces, changed or (), strict=False):
            found = True
            event.attributes[index] = KeyValue(key, AnyValue(text.decode()))
    return found


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
        self.anew: set[str] = set()  # keys whose values are to be written even where nothing in them changes
        for pair in attributes:
            value, anew = _plain(pair.value)
            if anew:
                self.anew.add(pair.key)
            self.pairs.append(pair)
            self.plain[pair.key] = value

    def replace(self, owner: Any, wanted: Mapping[str, Any]) -> None:
        """Gives `owner` the wanted attributes. All values are made before the first is set: it is all or nothing."""
        new = {
            key: _turned(value)
            for key, value in wanted.items()
            if key in self.anew or key not in self.plain or value is not self.plain[key]
        }
        if not new:
            return
        # A new pair, and not a new value in the old one: what panicked is poisoned, and rotel ends when it meets it again.
        kept = [KeyValue(pair.key, new.pop(pair.key)) if pair.key in new else pair for pair in self.pairs]
        owner.attributes = [*kept, *(KeyValue(key, value) for key, value in new.items())]


def _plain(value: Any) -> tuple[Any, bool]:
    """A value in Python's types, and whether it must be written anew even where nothing in it changes.

    That is so of arrays (see TESTED_WITH), of an attribute without a value: it is valid OTLP, and rotel panics when it
    is read; and of a map that has a key twice: only the last pair of these is looked at.
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
        plain = {key: item for key, (item, _) in pairs}
        return plain, len(plain) < len(pairs) or any(anew for _, (_, anew) in pairs)
    if isinstance(inner, list):
        return bytes(inner), False
    return inner, False


def _turned(value: Any) -> AnyValue:
    """The reverse of `_plain`, with arrays turned around so that rotel turns them back."""
    return _value(value, turn=True)


def _value(value: Any, *, turn: bool = False) -> AnyValue:
    if isinstance(value, list | tuple):
        array = ArrayValue()
        for item in reversed(value) if turn else value:
            array.append(_value(item, turn=turn))
        return AnyValue(array)
    if isinstance(value, Mapping):
        pairs = KeyValueList()
        for key, item in value.items():
            pairs.append(KeyValue(key, _value(item, turn=turn)))
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
