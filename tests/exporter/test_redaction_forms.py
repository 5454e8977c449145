"""Secrets in the forms of logs, chats and documents, written down by hand: not made from the tables that look for them."""

from __future__ import annotations

import json
import os
import random
import string
import urllib.parse

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from spanloop_exporter.redaction.otlp import redact_request
from spanloop_exporter.redaction.redactor import Redactor
from spanloop_store.otlp.signals import Signal

REDACTOR = Redactor(b"a salt of the tests")
PASSWORD = "hUnter2x9"
HEX = "9f86d081884c7d659a2feaa0c55ad015"
CARD = "4111" + "1111" * 3
IP = "203.0.113.77"
_chance = random.Random(17)


def some(count: int, alphabet: str = string.ascii_letters + string.digits) -> str:
    """Random characters, a digit and both cases among them."""
    return "a7Q" + "".join(_chance.choices(alphabet, k=count - 3))


URL_SAFE = string.ascii_letters + string.digits + "-_"
# As the providers write them, made without a look at our table.
KEYS = {
    "openai": "sk-proj-" + some(74, URL_SAFE) + "T3Blbk" + "FJ" + some(74, URL_SAFE),
    "openai service account": "sk-svcacct-" + some(60, URL_SAFE) + "T3Blbk" + "FJ" + some(50, URL_SAFE),
    "openai, old": "sk-" + some(20) + "T3Blbk" + "FJ" + some(20),
    "anthropic": "sk-ant-" + "api03-" + some(93, URL_SAFE) + "AA",
    "moonshot": "sk-kimi-" + some(64),
    "minimax": "sk-api-" + some(100, URL_SAFE),
    "deepseek": "sk-" + HEX,
    "aws": "AKIA" + "QYLPMN5HHHFPZAM2",
    "google": "AIza" + some(35, URL_SAFE),
    "azure": "abc8Q~" + some(34, URL_SAFE),
    "github": "ghp_" + some(36),
    "github, fine grained": "github_pat_" + some(22) + "_" + some(59),
    "gitlab": "glpat-" + some(20, URL_SAFE),
    "gitlab, routable": "glpat-" + some(27, URL_SAFE) + ".01.a1b2c3d4e",
    "slack": "xoxb-" + "123456789012-1234567890123-" + some(24),
    "stripe": "sk_live_" + some(24),
    "stripe restricted": "rk_live_" + some(99),
    "twilio": "SK" + HEX,
    "sendgrid": "SG." + some(22, URL_SAFE) + "." + some(43, URL_SAFE),
    "hugging face": "hf_" + some(34),
    "npm": "npm_" + some(36),
    "pypi": "pypi-AgEIcHlwaS5vcmc" + some(140, URL_SAFE),
    "vercel": "vcp_" + some(56),
    "daytona": "dtn_" + HEX * 2,
    "groq": "gsk_" + some(52),
    "jwt": "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0." + some(43, URL_SAFE),
}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize(
    "text",
    ["it is {} now", "export KEY='{}'", '{{"a": "{}"}}', "Authorization: Bearer {}", "https://x/?a={}&b=1"],
    ids=["prose", "shell", "json", "header", "url"],
)
def test_keys_of_providers(key: str, text: str) -> None:
    assert key[-10:-2] not in REDACTOR.redact_text(text.format(key))


FORMS = {
    # addresses, as logs have them
    "ip after an equals sign": (f"SRC={IP} DST=198.51.100.4", IP),
    "ip after another": (f"SRC={IP} DST=198.51.100.4", "198.51.100.4"),
    "ip in XML": (f"<client>{IP}</client>", IP),
    "ip of a login": (f"ssh root@{IP}", IP),
    "ip after an arrow": (f"a -> {IP}", IP),
    "range of ips": ("10.0.0.5-10.0.0.20", "10.0.0.5"),
    "short ip that is called one": ('{"remote_addr":"1.2.3.4"}', "1.2.3.4"),
    "short ip in prose": ("my ip is 1.2.3.4", "1.2.3.4"),
    # e-mail
    "mail before a bracket": ("jane.doe@example.com(work)", "jane.doe"),
    "mail with a footnote": ("jane.doe@example.com[1]", "jane.doe"),
    "mail in Paraguay": ("juan@empresa.com.py", "juan"),
    "mail in Moldova": ("ion@firma.md", "ion@"),
    "mail encoded twice": ("jane.doe%2540example.org", "jane.doe"),
    # cards, accounts, telephones
    "card and expiry": (f"{CARD}/12/27", CARD),
    "card with colons": (f"{CARD}:12:27:123", CARD),
    "card in a URL": ("card=4111%201111%201111%201111&x=1", "%201111%201111"),
    "iban with hyphens": ("DE89-3704-0044-0532-0130-00", "3704-0044"),
    "iban in a URL": ("DE89%203704%200044%200532%200130%2000", "3704%200044"),
    "telephone in a URL": ("%2B49%20171%202345678", "2345678"),
    # passwords, as people and programs write them
    "password in bold": (f"**Password:** {PASSWORD}", PASSWORD),
    "bold password": (f"Password: **{PASSWORD}**", PASSWORD),
    "password in XML": (f"<password>{PASSWORD}</password>", PASSWORD),
    "password in SQL": (f"CREATE USER bob WITH PASSWORD '{PASSWORD}'", PASSWORD),
    "password of a form": (f'{{"name": "password", "value": "{PASSWORD}"}}', PASSWORD),
    "password of an environment": (f"DB_PASS={PASSWORD}", PASSWORD),
    "password in JavaScript": (f"auth: {{user: 'bob', pass: '{PASSWORD}'}}", PASSWORD),
    "password in a URL": (f"user%3Dbob%26password%3D{PASSWORD}", PASSWORD),
    "password of JSON in a URL": (f"%7B%22password%22%3A%22{PASSWORD}%22%7D", PASSWORD),
    "password after a tab": (f'{{"text": "Password:\\t{PASSWORD}"}}', PASSWORD),
    "password in German": (f"Passwort: {PASSWORD}", PASSWORD),
    "password in Spanish": (json.dumps(f"contraseña: {PASSWORD}"), PASSWORD),
    "flag": (f"login --pass {PASSWORD}", PASSWORD),
    **{
        f"password that begins as a placeholder: {value}": (f'{{"password": "{value}"}}', value)
        for value in ("Password123!", "Secret#99", "$ecret99x", "/pass99x", "yourMom99", "TrueLove77", "my-Rex1")
    },
    # keys that their surroundings give away
    "bare authorization": (f"Authorization: {HEX}", HEX),
    "authorization with a scheme": (f"Authorization: Token {HEX}", HEX),
    "authorization in JSON": (f'{{"Authorization": "ApiKey {HEX}"}}', HEX),
    "azure's header": (f"Ocp-Apim-Subscription-Key: {HEX}", HEX),
    "key in a query": (f"https://x.example/v1?key={HEX}&x=1", HEX),
    "key in backticks": (f"API key `{HEX}`", HEX),
    "base64 that begins with a slash": (f"aws_secret_access_key = /JalrXUtnFEMI/K7MDENG/bPx{HEX[:9]}", "FEMI/K7M"),
}  # fmt: skip


def dot_net(text: str) -> str:
    """As the encoders of .NET and Go write what HTML could take for its own."""
    said = json.dumps({"content": text}).replace('\\"', "\\u0022")
    for character in "'+&<>`":
        said = said.replace(character, f"\\u{ord(character):04X}")
    return said


@pytest.mark.parametrize(("text", "secret"), FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("depth", [0, 1, 5])
def test_forms_of_the_world(text: str, secret: str, depth: int) -> None:
    for _ in range(depth):
        text, secret = json.dumps({"content": text}), json.dumps(secret)[1:-1]
    redacted = REDACTOR.redact_text(text)
    assert secret not in redacted
    assert len(redacted.encode()) == len(text.encode())
    assert REDACTOR.redact_text(redacted) == redacted


def test_the_escapes_of_other_encoders() -> None:
    form = {name: dot_net(text) for name, (text, _) in FORMS.items()}
    leaked = [name for name, text in form.items() if FORMS[name][1] in REDACTOR.redact_text(text)]
    # Known: a backtick or an arrow that is escaped says nothing about what follows.
    assert set(leaked) <= {"key in backticks"}


INNOCENT = {
    "flags of a program": "pass `in_order=True1`, or pass `append=True99`; tests: 12 passed=12abc34; bypass: 'mode1x'",
    "placeholders": "password: your-password, secret=my_secret_token_here, PASSWORD=$DB_PASSWORD, {\"password\": \"string\"}",
    "paths": "password_file: /run/secrets/db1, api_key: /etc/keys/service1.pem/x",
    "versions": "version=4.15.20.1, pkg==4.15.20.1, ver: 10.0.19045.3570, rev: 2.10.30.40, lib~=4.15.20.1",
    "images at a scale": "icon@2x.png and logo@3x.webp, torch: q@k.T[0] + a@b.sum(1)",
    "token ids": '{"token_ids":[107976,19402,14500,2],"tokens":12345678901234567890}',
    "years": "2021 2022 2023 2024 2025 2026 2027 4111 5500",
    "the machine": "listening on\t127.0.0.1:8080\n127.0.0.1",
}  # fmt: skip


@pytest.mark.parametrize("text", INNOCENT.values(), ids=INNOCENT)
def test_what_has_the_form_and_is_none(text: str) -> None:
    assert REDACTOR.redact_text(text) == text


@pytest.mark.parametrize("length", [17, 48, 57, 65, 98, 122, 200])
def test_a_number_at_the_start_of_an_events_name(length: int) -> None:
    """The tag before it is the letter b, the length before it a digit or letter: together they look like a word."""
    request = ExportLogsServiceRequest()
    record = request.resource_logs.add().scope_logs.add().log_records.add()
    record.event_name = CARD.ljust(length)
    assert CARD.encode() not in redact_request(request.SerializeToString(), Signal.LOGS, REDACTOR)


def test_only_where_something_is_seen_a_large_text_is_looked_at() -> None:
    """What the scan of the message saw says where: at the start, in the middle and at the end."""
    mail, filler = "jane.doe@example.org", "nothing to see here. " * 3000
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add(name="n")
    text = f"{mail} {filler} see icon@2x.png {filler} {mail} password: {PASSWORD} {filler} {mail}"
    span.attributes.add(key="a").value.string_value = text
    changed = redact_request(request.SerializeToString(), Signal.TRACES, REDACTOR)
    kept = ExportTraceServiceRequest.FromString(changed).resource_spans[0].scope_spans[0].spans[0]
    assert kept.attributes[0].value.string_value == REDACTOR.redact_text(text)
    assert mail.encode() not in changed
    assert PASSWORD.encode() not in changed
    assert urllib.parse.quote(mail).encode() not in changed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_has_an_engine_of_its_own() -> None:
    """Another thread may be inside the engine at the fork; its locks stay locked in the child, which would hang for ever."""
    redactor = Redactor(b"a salt of the tests", patterns=[("customer", "C-[0-9]{8}")])
    redactor.redact(b"warm")
    engines = (redactor._scan, redactor._own[0][1])
    child = os.fork()
    if not child:
        said = redactor.redact_text("jane.doe@example.org C-12345678")
        own = (redactor._scan, redactor._own[0][1])
        fresh = all(
            new is not old and new._regexp is not old._regexp for new, old in zip(own, engines, strict=True)
        )
        os._exit(0 if fresh and "jane" not in said and "1234" not in said else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert (redactor._scan, redactor._own[0][1]) == engines


def test_own_patterns_let_nothing_through_unasked() -> None:
    redactor = Redactor(
        b"a salt of the tests",
        patterns=[
            ("either", "id ([0-9]{6})|nr ([0-9]{6})"),
            ("rest", "case(:x)?[0-9]{6}"),
            ("half", "C-[0-9]{4}jane"),
        ],
    )
    for text in ("id 123456", "nr 123456", "case123456"):
        assert "123456" not in redactor.redact_text(text)
    # Two that overlap are replaced as one.
    assert "doe" not in redactor.redact_text("C-1234jane.doe@example.org")
