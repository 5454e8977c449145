"""What redaction takes for a secret, what it leaves alone, and how it is set up."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.exporter.planted import everything

from spanloop_exporter.errors import RedactionError
from spanloop_exporter.redaction.escapes import unescaped
from spanloop_exporter.redaction.pseudonyms import Pseudonyms, is_pseudonym
from spanloop_exporter.redaction.redactor import Redactor
from spanloop_exporter.redaction.settings import read_redaction, salt_of, salt_path
from spanloop_exporter.redaction.setup import redactor_for
from spanloop_exporter.redaction.streams import redact_stream

SALT = b"a salt of the tests"
REDACTOR = Redactor(SALT)
CARD = "4111" + "1111" * 3
MAIL = "jane.doe" + "@example.org"

INNOCENT = {
    "order numbers": "order 4111111111111112, 1234567890123456, PO-2024-000123 and 114-1234567-1234567",
    "dates": "2026-11-21T10:15:30.123456Z, 2026-11-21 10:15:30, 21.11.2026, 11/21/2026, 20261121101530",
    "timestamps": '{"created_at":"2026-11-20T22:22:14.983594Z","ns":1763719200000000000,"ms":1763719200000}',
    "versions": "v1.2.3.4, ==10.20.30.40, version: 10.0.19045.3570, Chrome/120.0.6099.109, package>=4.15.20.1",
    "sections": "see section 4.3.2.1 and 1.2.3.4",
    "uuids": "123e4567-e89b-12d3-a456-426614174000 and fd29cf02-0060-7dc1-b239-9acb3224e274",
    "hashes": "d41d8cd98f00b204e9800998ecf8427e da39a3ee5e6b4b0d3255bfef95601890afd80709 e3b0c44298fc1c149afbf4c8996fb92427ae41e4",
    "prices": "$1,234.56 and 1.299,00 € and 19.99, 4 500 000 USD",
    "numbers": "01 02 03 04 05 06, 3.14159265358979, [4111, 1111, 1111, 1111], 0.4111111111111111",
    "the machine itself": "127.0.0.1:8080 and 0.0.0.0 and ::1 and localhost, mask 255.255.255.0",
    "code": "password = get_password(user); token: str = None; api_key=os.environ['OPENAI_API_KEY'] ; q@k.transpose(-2, -1)",
    "placeholders": 'password=<your-password> {"password": "********"} api_key="your_api_key_here" Bearer YOUR_TOKEN ${PASSWORD}',
    "schemas": '{"password": {"type": "string"}, "max_tokens": 4096, "token_type_ids": [1, 2, 3], "total_tokens": 12345678}',
    "ids": "chatcmpl-9xYzAbCdEfGh call_abc123 resp_68a1b2c3 run-2026-11-21 task-risk-disk-usage",
    "slices": "rows[2000::10], std::vector, dead::beef, 12:34:56, aa:bb:cc:dd:ee:ff",
    "retina": "icon@2x.png git@github.com:org/repo.git @decorator npm i @scope/pkg@1.2.3",
    "words": "bearer of bad news, basic understanding, a token of appreciation, the secret is out, private key exchange",
}


@pytest.mark.parametrize("text", INNOCENT.values(), ids=INNOCENT)
@pytest.mark.parametrize("depth", [0, 2])
def test_what_only_looks_like_a_secret_stays(text: str, depth: int) -> None:
    for _ in range(depth):
        text = json.dumps({"content": text})
    assert REDACTOR.redact_text(text) == text


SECRET = {
    "no space before, in another script": (f"邮箱{MAIL}。", MAIL),
    "in angle brackets, escaped": (f"\\u003c{MAIL}\\u003e", MAIL),
    "plus escaped": ("to jane\\u002bnews@example.org", "news@example.org"),
    "percent": ("?mail=jane.doe%40example.org&x=1", "example.org"),
    "after a newline, escaped": ("a\\nghp_" + "a1B2" * 9, "a1B2a1B2"),
    "after an ANSI colour": ("\\u001b[31msk-proj-" + "a1B2" * 9, "a1B2a1B2"),
    "card with its expiry": (f"{CARD} 12/27 123", CARD),
    "a card twice": (f"{CARD},{CARD}", CARD),
    "no-break spaces": ("+49\u00a0171\u00a02345678", "2345678"),
    "escaped no-break spaces": ("+49\\u00a0171\\u00a02345678", "2345678"),
    "slash escaped as in PHP": (
        "https:\\/\\/hooks.slack.com\\/services\\/T0A1B2C3D\\/B0A1B2C3D\\/" + "a1B2" * 6,
        "a1B2a1B2",
    ),
    "a key whose end was cut off": (
        "-----BEGIN PRIVATE " + "KEY-----\\n" + "MIIEvQIBADAN" * 9,
        "MIIEvQIBADAN",
    ),
    "equals sign escaped": ("api_key\\u003da1B2c3D4e5F6g7H8", "a1B2c3D4"),
}


@pytest.mark.parametrize(("text", "secret"), SECRET.values(), ids=SECRET)
def test_secrets_are_found_whatever_stands_around_them(text: str, secret: str) -> None:
    redacted = REDACTOR.redact_text(text)
    assert secret not in redacted
    assert len(redacted.encode()) == len(text.encode())
    assert REDACTOR.redact_text(redacted) == redacted


def test_the_text_around_it_stays_as_it_is() -> None:
    text = f"Ask {MAIL}, or call +49 171 2345678."
    redacted = REDACTOR.redact_text(text)
    assert redacted.startswith("Ask ~email~")
    assert ", or call ~phone~" in redacted
    assert redacted.endswith(".")


def test_the_host_of_a_url_stays_where_its_password_goes() -> None:
    text = "postgres" + "://bob:hunter2@db.example.com:5432/app"
    redacted = REDACTOR.redact_text(text)
    assert redacted.endswith("@db.example.com:5432/app")
    assert redacted.startswith("postgres://bob:~")


def test_a_number_of_a_json_document_stays_a_number() -> None:
    document = {"card": int(CARD), "phone": 4155552671, "order": 4111111111111112}
    text = json.dumps(document)
    redacted = json.loads(REDACTOR.redact_text(text))
    assert redacted["order"] == document["order"]
    assert redacted["card"] != document["card"]
    assert redacted["phone"] != document["phone"]
    assert REDACTOR.redact_text(json.dumps(redacted)) == json.dumps(redacted)


def test_one_value_has_one_pseudonym_under_one_salt() -> None:
    token = "ghp_" + "a1B2" * 9
    bare, assigned = REDACTOR.redact_text(token), REDACTOR.redact_text(f"api_key={token}")
    assert assigned == f"api_key={bare}"
    assert Redactor(SALT).redact_text(token) == bare
    assert Redactor(SALT + b"!").redact_text(token) != bare


def test_counts_are_by_kind() -> None:
    redactor = Redactor(SALT)
    redactor.redact_text(f"{MAIL} {MAIL} {CARD}")
    assert redactor.counts == {"email": 2, "card": 1}


planted = [one.text for one in everything()]
texts = st.lists(
    st.one_of(
        st.sampled_from(planted),
        st.text(max_size=12),
        st.sampled_from(["\\n", '\\"', "=", ":", "@", "~", "/", " "]),
    ),
    max_size=8,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(texts)
def test_redaction_keeps_lengths_and_is_done_once(text: str) -> None:
    data = text.encode("utf-8", "replace")
    redacted = REDACTOR.redact(data)
    assert len(redacted) == len(data)
    assert redacted.decode() is not None
    assert REDACTOR.redact(redacted) == redacted


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_may_come(data: bytes) -> None:
    assert len(REDACTOR.redact(data)) == len(data)


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.one_of(st.sampled_from(planted), st.integers(), st.none()),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
        ),
        max_leaves=6,
    )
)
def test_json_stays_json(value: object) -> None:
    text = json.dumps(json.dumps(value))
    redacted = json.loads(json.loads(REDACTOR.redact_text(text)))
    assert type(redacted) is type(value)


@given(st.binary(min_size=1, max_size=64), st.integers(1, 200))
def test_a_pseudonym_is_known_as_one(value: bytes, size: int) -> None:
    made = Pseudonyms(SALT)
    for label in (b"email", b"secret"):
        text = made.text(label, value, size)
        assert len(text) == size
        assert is_pseudonym(text)
    number = made.number(b"card", value, size)
    assert len(number) == size
    assert number.isdigit()
    assert is_pseudonym(number)


@given(st.text(max_size=20), st.integers(1, 3))
def test_what_was_meant_is_the_same_at_every_depth(text: str, depth: int) -> None:
    text = text.replace("\\", "").replace("\ud800", "")
    nested = text
    for _ in range(depth):
        nested = json.dumps(nested, ensure_ascii=False)[1:-1]
    if nested.isprintable():
        assert unescaped(nested.encode()) == unescaped(text.encode())


def test_pieces_of_a_stream_are_one_text() -> None:
    assert redact_stream([b"mail jane.d", b"oe@exam", b"ple.org now"], REDACTOR) is not None
    assert redact_stream([b"4111", b"1111", b"1111", b"1111"], REDACTOR) is None  # numbers of their own
    chunks = [
        json.dumps({"i": index, "d": piece}).encode()
        for index, piece in enumerate(("jane.d", "oe@exam", "ple.org"))
    ]
    changed = redact_stream(chunks, REDACTOR)
    assert changed is not None
    assert "".join(json.loads(chunk)["d"] for chunk in changed).startswith("~email~")


def write(path: Path, text: str) -> dict[str, str]:
    path.write_text(text)
    return {"SPANLOOP_REDACTION": str(path), "SPANLOOP_REDACTION_SALT": "0123456789abcdef"}


def test_settings_of_a_file(tmp_path: Path) -> None:
    environ = write(
        tmp_path / "spanloop.toml",
        '[redaction]\ndisable = ["phone"]\nallow = ["support@example.com", "*@ours.example"]\n'
        '[[redaction.patterns]]\nname = "customer"\nregex = "C-[0-9]{6}"\n'
        '[[redaction.patterns]]\nname = "project"\nregex = "project (\\\\w+)"\n',
    )
    redactor = redactor_for(None, environ)
    assert redactor is not None
    kept = "Support@example.com anna@ours.example +49 171 2345678"
    assert redactor.redact_text(kept) == kept
    redacted = redactor.redact_text(f"{MAIL} C-123456 project manhattan")
    assert "C-123456" not in redacted
    assert "project ~" in redacted
    assert redactor.redact_text(redacted) == redacted
    assert redactor.counts == {"email": 1, "customer": 1, "project": 1}


def test_a_pattern_that_asks_for_its_surroundings_sees_each_text_by_itself(tmp_path: Path) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    from spanloop_exporter.redaction.otlp import redact_request
    from spanloop_store.otlp.signals import Signal

    environ = write(tmp_path / "r.toml", "[[redaction.patterns]]\nname = 'exact'\nregex = '^\\d{6}$'\n")
    redactor = redactor_for(None, environ)
    assert redactor is not None
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add(name="x" * 48)
    for text in ("123456", "1234567"):
        span.attributes.add(key="k").value.string_value = text
    changed = ExportTraceServiceRequest.FromString(
        redact_request(request.SerializeToString(), Signal.TRACES, redactor)
    )
    values = [
        pair.value.string_value for pair in changed.resource_spans[0].scope_spans[0].spans[0].attributes
    ]
    assert values[0] != "123456"
    assert values[1] == "1234567"


BAD = {
    "no such file": (None, "cannot be read"),
    "no TOML": ("[redaction", "is no TOML"),
    "a setting that there is not": ("[redaction]\nalow = []\n", "no setting alow"),
    "a kind that there is not": ('[redaction]\ndisable = ["fone"]\n', "no kind fone"),
    "a list that is none": ("[redaction]\nallow = 3\n", "is no list"),
    "a bad pattern": ("[[redaction.patterns]]\nname = 'p'\nregex = '('\n", "no regular expression"),
    "look-behind": ("[[redaction.patterns]]\nname = 'p'\nregex = '(?<=a)b'\n", "no regular expression"),
    "a pattern that matches nothing": (
        "[[redaction.patterns]]\nname = 'p'\nregex = 'a*'\n",
        "the empty text",
    ),
    "a pattern without a name": ("[[redaction.patterns]]\nregex = 'a'\n", "a name and a regex"),
    "a short salt": ("[redaction]\nsalt = 'abc'\n", "salt of 3 bytes"),
}


@pytest.mark.parametrize(("text", "said"), BAD.values(), ids=BAD)
def test_what_makes_no_sense_is_refused_in_words(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "redaction.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RedactionError, match=said) as raised:
        redactor_for(tmp_path, {"SPANLOOP_REDACTION": str(path)})
    assert raised.value.hint


@pytest.mark.parametrize(
    ("said", "on"), [("", True), ("on", True), ("ON", True), ("off", False), ("0", False)]
)
def test_on_and_off(said: str, on: bool, tmp_path: Path) -> None:
    assert (read_redaction({"SPANLOOP_REDACTION": said}) is not None) is on
    assert (redactor_for(tmp_path, {"SPANLOOP_REDACTION": said}) is not None) is on


def test_the_salt_lies_beside_the_spool_and_is_made_once(tmp_path: Path) -> None:
    spool = tmp_path / "home" / "spool"
    salt = salt_of(spool)
    path = tmp_path / "home" / "redaction.salt"
    assert path == salt_path(spool) == salt_path(tmp_path / "home")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert salt_of(tmp_path / "home") == salt == path.read_bytes().strip()
    assert [one.name for one in path.parent.iterdir()] == ["redaction.salt"]


def test_a_salt_that_cannot_be_kept_is_the_processes_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert salt_of(blocked / "inner") == salt_of(None)
    salt_of(blocked / "inner")
    assert len(caplog.records) == 1


def test_a_broken_salt_is_refused(tmp_path: Path) -> None:
    salt_path(tmp_path).write_text("short")
    with pytest.raises(RedactionError, match=r"redaction\.salt holds a salt of 5 bytes"):
        redactor_for(tmp_path, {})
