"""Store URLs: what they name, and what is refused."""

import traceback
from pathlib import Path

import pytest

from spanloop_store import SpanloopError, StoreUnavailable, StoreUrl, StoreUrlError, connect


def test_embedded_layout(tmp_path: Path) -> None:
    url = StoreUrl.parse(f"chdb://{tmp_path}/s")
    assert url.kind == "chdb"
    assert url.engine_path == tmp_path / "s" / "engine"
    assert url.log_path == tmp_path / "s" / "log"
    assert url.owner_path == tmp_path / "s" / "owner.json"
    assert url.quarantine_path == tmp_path / "s" / "quarantine"


def test_default_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SPANLOOP_STORE", raising=False)
    assert StoreUrl.parse(None).path == tmp_path / ".spanloop"
    monkeypatch.setenv("SPANLOOP_STORE", "clickhouse://h/db")
    assert StoreUrl.parse(None).database == "db"


def test_server_parts_and_redaction() -> None:
    url = StoreUrl.parse("clickhouses://u%40x:p%3Aw@host/db?verify=false")
    assert (url.user, url.password, url.host, url.port, url.database, url.secure) == (
        "u@x",
        "p:w",
        "host",
        8443,
        "db",
        True,
    )
    assert dict(url.options) == {"verify": "false"}
    assert "p:w" not in url.redacted()
    assert "p:w" not in repr(url)


@pytest.mark.parametrize(
    "text",
    [
        "clickhouse://user:topsecret#1@host:8123/db",
        "clickhouse://user:topsecret/1@host:8123/db",
        "clickhouse://user:topsecret?1@host:8123/db",
        "clickhouse://user:[topsecret@host:8123/db",
        "user:topsecret@host:8123/db",
        "https://user:topsecret@host:8123/db",
        "chdb://user:topsecret@host/x",
    ],
)
def test_a_url_that_cannot_be_read_shows_no_password(text: str) -> None:
    with pytest.raises(StoreUrlError) as caught:
        StoreUrl.parse(text)
    shown = "".join(traceback.format_exception(caught.value))
    # The line of this test is in no traceback, only what the program says.
    assert "topsecret" not in shown.replace(text, "")
    assert "clickhouse://user:password@host" in caught.value.hint


def test_a_folder_is_named_in_full_or_not_at_all(tmp_path: Path) -> None:
    url = StoreUrl.parse(f"chdb://{tmp_path}/a%23b%2541")
    assert url.path == tmp_path / "a#b%41"
    assert StoreUrl.parse(url.redacted()) == url
    for text in ("a#b", "a?b", "a%3Fb"):
        with pytest.raises(StoreUrlError, match=r"otherwise|nothing is read"):
            StoreUrl.parse(f"chdb://{tmp_path}/{text}")


@pytest.mark.parametrize(
    "option", ["nonsense=1", "host=x", "password=x", "settings=x", "connect_timeout=soon"]
)
def test_options_that_are_none(option: str) -> None:
    with pytest.raises(SpanloopError) as caught:
        connect(f"clickhouse://u:topsecret@127.0.0.1:1/db?{option}")
    assert option.partition("=")[0] in caught.value.message
    assert "topsecret" not in str(caught.value)


def test_an_option_of_ours_may_be_set_otherwise() -> None:
    with pytest.raises(StoreUnavailable, match="does not answer"):
        connect("clickhouse://u@127.0.0.1:1/db?connect_timeout=5&verify=false")


@pytest.mark.parametrize(
    "text",
    ["http://x", "chdb://", "chdb:///", "chdb://relative/x", "clickhouse://", "clickhouse://h:port/x", "/x"],
)
def test_wrong_urls_say_what_is_right(text: str) -> None:
    with pytest.raises(StoreUrlError) as caught:
        StoreUrl.parse(text)
    assert "chdb:///absolute/path" in caught.value.hint
