"""Store URLs: what they name, and what is refused."""

from pathlib import Path

import pytest

from spanloop_store import StoreUrl, StoreUrlError


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
    ["http://x", "chdb://", "chdb:///", "chdb://relative/x", "clickhouse://", "clickhouse://h:port/x", "/x"],
)
def test_wrong_urls_say_what_is_right(text: str) -> None:
    with pytest.raises(StoreUrlError) as caught:
        StoreUrl.parse(text)
    assert "chdb:///absolute/path" in caught.value.hint
