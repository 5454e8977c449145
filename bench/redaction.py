"""Redaction: MB/s in the collector, µs in the agent, misses among planted secrets, false alarms in what has none.

    python -m bench redaction
    python bench/redaction.py [--rounds 3] [--mib 8] [--write docs/measurements/redaction.md]

Speeds are CPU of one core, the best of the rounds: what else the machine does only ever adds to it. Beside them, in the same
run, stands what the collector does to the same bytes anyway (decode them and check ids).
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import random
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # for `tests` and `examples`

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest  # noqa: E402
from tests.exporter import planted  # noqa: E402

from spanloop_exporter.redaction.otlp import redact_request  # noqa: E402
from spanloop_exporter.redaction.redactor import Redactor  # noqa: E402
from spanloop_store.otlp.check import check_json, check_protobuf  # noqa: E402
from spanloop_store.otlp.signals import Signal  # noqa: E402

SALT = b"a salt for benchmarks"
BUDGET_MB_S = 100.0
_SPAN_BYTES = 3000
_MOST_OF_A_CORPUS = 16 << 20
_SHOWN = 3  # examples of a kind
# What is no secret, but a true address: of an author in a source file, of a host in an example.
_TRUE = frozenset({"email", "ipv4", "ipv6"})


def best_s(rounds: int, work: Callable[[], object]) -> float:
    """CPU seconds of the fastest round."""
    found = []
    for _ in range(rounds):
        before = time.process_time()
        work()
        found.append(time.process_time() - before)
    return min(found)


# --- what is measured on


def prose() -> str:
    """This project's documentation: English, with code and tables in it."""
    redactor = Redactor(SALT)
    text = "\n".join(path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    return redactor.redact_text(text)  # examples of secrets are in it; none stays


def texts_of(source: str, size: int, mib: int) -> Iterator[str]:
    chance = random.Random(1)
    for _ in range((mib << 20) // size):
        start = chance.randrange(max(1, len(source) - size))
        yield source[start : start + size]


def request_of(texts: Iterator[str], *, secrets: int = 0) -> bytes:
    """Raw OTLP as an agent sends it: messages as JSON in an attribute, a dozen others beside them.

    Args:
        texts: one a span.
        secrets: how many e-mail addresses stand in each.
    """
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    scope.scope.name = "opentelemetry.instrumentation.openai.v1"
    for number, text in enumerate(texts, 1):
        start = 1_795_208_087_000_000_000 + number
        span = scope.spans.add(
            trace_id=number.to_bytes(16, "big"),
            span_id=number.to_bytes(8, "big"),
            name="openai.chat",
            start_time_unix_nano=start,
            end_time_unix_nano=start + 5,
        )
        for key in ("operation.name", "provider.name", "request.model", "response.model", "response.id"):
            span.attributes.add(key=f"gen_ai.{key}").value.string_value = f"{key}-{number}"
        for key in ("usage.input_tokens", "usage.output_tokens", "request.max_tokens"):
            span.attributes.add(key=f"gen_ai.{key}").value.int_value = number
        said = text + "".join(f" write to user{number}.{one}@mail.example" for one in range(secrets))
        messages = json.dumps([{"role": "user", "content": said}])
        span.attributes.add(key="gen_ai.input.messages").value.string_value = messages
    return bytes(request.SerializeToString())


def workloads(mib: int) -> Iterator[tuple[str, bytes]]:
    """(what it is, an export request)."""
    chance = random.Random(2)
    text = prose()
    yield "prose, nothing in it", request_of(texts_of(text, _SPAN_BYTES, mib))
    yield "prose, an address in every span of 3 KB", request_of(texts_of(text, _SPAN_BYTES, mib), secrets=1)
    yield "prose, an address every 60 bytes", request_of(texts_of(text, 60, max(1, mib // 4)), secrets=1)
    code = "\n".join(path.read_text("utf-8", "replace") for path in sorted(stdlib().glob("[a-m]*.py")))
    yield "code (Python's standard library)", request_of(texts_of(code, _SPAN_BYTES, mib))
    recorded = b"".join(
        check_json(Signal.TRACES, path.read_bytes()).payload
        for path in recordings()
        if ".logs." not in path.name
    )
    yield "recordings of 14 frameworks, repeated", recorded * max(1, (mib << 20) // len(recorded))
    image = base64.b64encode(chance.randbytes(1 << 20)).decode()
    yield "images in base64", request_of(image for _ in range(max(1, mib * 3 // 4)))
    floats = json.dumps([chance.gauss(0, 0.1) for _ in range(50_000)])
    yield "embeddings as JSON", request_of(floats for _ in range(max(1, (mib << 20) // len(floats))))
    ids = json.dumps([chance.randrange(150_000) for _ in range(50_000)])
    yield "token ids as JSON", request_of(ids for _ in range(max(1, (mib << 20) // len(ids))))


def stdlib() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def recordings() -> list[Path]:
    return sorted(
        path for path in (ROOT / "tests" / "fixtures").rglob("*.json") if "resource" in path.read_text()[:40]
    )


# --- the four measurements


def speeds(rounds: int, mib: int) -> list[str]:
    redactor = Redactor(SALT)
    lines = [
        "| what is in the request | MiB | redaction, MB/s a core | decode and check of the same bytes, MB/s |",
        "|---|---|---|---|",
    ]
    for name, data in workloads(mib):
        redaction = best_s(rounds, lambda data=data: redact_request(data, Signal.TRACES, redactor))
        check = best_s(rounds, lambda data=data: check_protobuf(Signal.TRACES, data))
        rates = (f"{len(data) / seconds / 1e6:,.0f}" for seconds in (redaction, check))
        lines.append(f"| {name} | {len(data) >> 20} | {' | '.join(rates)} |")
    return [*lines, "", f"Budget: {BUDGET_MB_S:.0f} MB/s of prose."]


def in_the_agent(rounds: int) -> list[str]:
    redactor = Redactor(SALT)
    count = 200
    lines = ["| a span of 3 KB | µs |", "|---|---|"]
    for name, secrets in (("nothing in it", 0), ("one address in it", 1), ("ten addresses in it", 10)):
        data = request_of(texts_of(prose(), _SPAN_BYTES, 1), secrets=secrets)
        one = ExportTraceServiceRequest.FromString(data)
        del one.resource_spans[0].scope_spans[0].spans[1:]
        span = one.SerializeToString()

        def work(span: bytes = span) -> None:
            for _ in range(count):
                redact_request(span, Signal.TRACES, redactor)

        lines.append(f"| {name} | {best_s(rounds * 4, work) / count * 1e6:,.0f} |")
    program = """
import time
import spanloop_exporter.launch, spanloop_exporter.hooks, spanloop_exporter.distro, spanloop_exporter.spooling.processor
a = time.process_time()
from spanloop_exporter.redaction.redactor import Redactor  # noqa: E402
import spanloop_exporter.redaction.otlp
import re2
b = time.process_time()
Redactor(b"0123456789abcdef").redact(b"warm")
print((b - a) * 1e3, (time.process_time() - b) * 1e3)
"""
    with_bytecode = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    found = [
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=with_bytecode
        ).stdout.split()
        for _ in range(rounds + 1)
    ]
    imported, made = (min(float(one[column]) for one in found) for column in (0, 1))
    return [
        *lines,
        "",
        f"Once a process: {imported:.0f} ms of CPU to import it, {made:.0f} ms to compile its patterns.",
    ]


def misses() -> list[str]:
    """Planted values that are still there, by how they were hidden."""
    redactor = Redactor(SALT)
    values = planted.everything(every_vendor=True)
    lines = ["| planted | kinds | values | missed |", "|---|---|---|---|"]
    for depth in range(5):
        missed = []
        for value in values:
            text, secret = value.text, value.secret
            forms = {secret}
            for _ in range(depth):
                text, secret = json.dumps({"content": text}), json.dumps(secret)[1:-1]
                forms.add(secret)
            said = redactor.redact_text(text)
            if any(form in said for form in forms):
                missed.append(value.kind)
        name = "as it is" if not depth else f"in JSON, {depth} deep"
        kinds = len({value.kind for value in values})
        lines.append(
            f"| {name} | {kinds} | {len(values)} | {len(missed)}{': ' + ', '.join(missed) if missed else ''} |"
        )
    return lines


def corpora() -> Iterator[tuple[str, Iterator[bytes]]]:
    """(what it is, its texts): nothing of it is a secret of anybody's."""
    chance = random.Random(3)

    def read(paths: Iterator[Path]) -> Iterator[bytes]:
        total = 0
        for path in paths:
            data = path.read_bytes()
            total += len(data)
            if total > _MOST_OF_A_CORPUS:
                return
            yield data

    site = Path(sysconfig.get_path("purelib"))
    yield (
        "Python's standard library, *.py",
        read(path for path in sorted(stdlib().rglob("*.py")) if "site-packages" not in path.parts),
    )
    yield (
        "licences of installed packages",
        read(path for path in sorted(site.rglob("*LICENSE*")) if path.is_file()),
    )
    yield "installed packages, *.py", read(iter(sorted(site.rglob("*.py"))))
    yield "recordings of 14 frameworks", read(iter(recordings()))
    yield "documentation of this project", read(iter(sorted((ROOT / "docs").rglob("*.md"))))
    yield "the demo's tasks", iter([_tasks()])
    yield "base64 of random bytes", iter([base64.b64encode(chance.randbytes(3 << 20))])
    yield "base64url of random bytes", iter([base64.urlsafe_b64encode(chance.randbytes(3 << 20))])
    yield "hexadecimal of random bytes", iter([chance.randbytes(2 << 20).hex().encode()])
    yield "embeddings as JSON", iter([json.dumps([chance.gauss(0, 0.1) for _ in range(150_000)]).encode()])
    yield (
        "token ids as JSON",
        iter([json.dumps([chance.randrange(150_000) for _ in range(400_000)]).encode()]),
    )
    yield (
        "numbers of 16 digits",
        iter([b"\n".join(b"order %016d" % chance.randrange(10**16) for _ in range(100_000))]),
    )
    yield (
        "numbers of 10 digits",
        iter([b"\n".join(b"order %010d" % chance.randrange(10**10) for _ in range(100_000))]),
    )


def _tasks() -> bytes:
    from examples.calculator.tasks import FRAMES, KEYWORDS

    words = [word for wordings in KEYWORDS.values() for word in wordings]
    pairs = [(a, b) for a in range(100) for b in range(0, 100, 7)]
    return "\n".join(
        frame.format(word=word, a=a, b=b) for frame in FRAMES for word in words for a, b in pairs
    ).encode()


def false_alarms() -> list[str]:
    redactor = Redactor(SALT)
    lines = [
        "| where there is none | MB | addresses (e-mail, IP) | all else | of what kind |",
        "|---|---|---|---|---|",
    ]
    examples: list[str] = []
    for name, texts in corpora():
        found: Counter[str] = Counter()
        size = 0
        for text in texts:
            size += len(text)
            for one in redactor.find(text):
                found[one.kind] += 1
                if one.kind not in _TRUE and found[one.kind] <= _SHOWN:
                    around = text[max(0, one.start - 30) : one.start]
                    examples.append(f"{name}: {one.kind} after {around.decode('utf-8', 'replace')!r}")
        addresses = sum(count for kind, count in found.items() if kind in _TRUE)
        others = {kind: count for kind, count in sorted(found.items()) if kind not in _TRUE}
        said = ", ".join(f"{kind} {count}" for kind, count in others.items())
        lines.append(f"| {name} | {size / 1e6:,.1f} | {addresses} | {sum(others.values())} | {said} |")
    print("\n".join(examples), file=sys.stderr)
    return lines


def run(rounds: int, mib: int) -> str:
    """Measures everything; the page's text."""
    return "\n".join(
        [
            "## Speed in the collector",
            "",
            *speeds(rounds, mib),
            "",
            "## Cost in the agent",
            "",
            *in_the_agent(rounds),
            "",
            "## Misses",
            "",
            *misses(),
            "",
            "## False alarms",
            "",
            *false_alarms(),
            "",
            f"The best of {rounds} rounds; Python {platform.python_version()}, {os.cpu_count()} cores, one used.",
        ]
    )


_NOTES = """
E-mail and IP addresses in sources, licences and documentation are true ones (of authors, in examples), and so are not false: they stand in a
column of their own. Beside them: passwords and telephone numbers of examples (`password="secret123"`), which nothing can tell from real ones; a decimal
number in Python's `decimal.py`, a type after `private_key:` and a shell variable after `Bearer%20`, which are false; and of numbers of 16 random digits, 2.4 % are card numbers by every
rule that there is (brand, length, checksum). Bare numbers of 10 digits are never taken for a telephone.

What the scan of a request sees is looked at in Python, and costs some 50 to 100 µs with its span, of which the exact checks, the walk down to the text and the
pseudonym take about a third each: that is why prose with an address in each span of 3 KB is slower. The text around it is scanned no more than once again.

The tests plant the same values at every place of spans and log records, and cut in pieces as streams are
([`tests/exporter/test_redaction_planted.py`](../../tests/exporter/test_redaction_planted.py)). What is not found by design stands in
[redaction](../redaction.md#what-is-not-found).
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mib", type=int, default=8, help="of each request")
    parser.add_argument("--write", type=Path, help="a page to write the tables to")
    options = parser.parse_args(arguments or [])
    text = run(options.rounds, options.mib)
    print(text)
    if options.write:
        head = "# Redaction: speed, misses, false alarms\n\nWritten by `python bench/redaction.py --write PAGE`.\n\n"
        options.write.write_text(f"{head}{text}\n{_NOTES}")


if __name__ == "__main__":
    main(sys.argv[1:])
