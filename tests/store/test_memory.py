"""The engine's share of memory: of the machine, of its container, or as it is told."""

from pathlib import Path

import pytest

from spanloop_store.errors import StoreSettingError
from spanloop_store.memory import available_bytes, engine_bytes

GIB = 1 << 30


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 4 * GIB), ("0.25", 2 * GIB), ("1", 8 * GIB), ("4GiB", 4 * GIB), ("4G", 4 * GIB), ("2 gb", 2 * 10**9),
        ("512MiB", GIB // 2), ("300000000", 300_000_000), ("1.5GiB", 3 * GIB // 2),
    ],
    ids=repr,
)  # fmt: skip
def test_amounts(text: str, expected: int) -> None:
    assert engine_bytes({"SPANLOOP_ENGINE_MEMORY": text}, 8 * GIB) == expected


@pytest.mark.parametrize("text", ["much", "-1", "0.001", "1MiB", "0", "4 GiBs"])
def test_no_amount(text: str) -> None:
    with pytest.raises(StoreSettingError, match="SPANLOOP_ENGINE_MEMORY") as caught:
        engine_bytes({"SPANLOOP_ENGINE_MEMORY": text}, 8 * GIB)
    assert caught.value.hint


def groups(folder: Path, lines: str, **limits: str) -> int:
    (folder / "proc" / "self").mkdir(parents=True)
    (folder / "proc" / "self" / "cgroup").write_text(lines)
    for path, text in limits.items():
        file = folder / "groups" / path.replace("__", "/")
        file = file.with_name(file.name.replace("_max", ".max").replace("memory_limit", "memory.limit"))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return available_bytes(folder / "proc", folder / "groups")


def test_the_least_limit_above_counts(tmp_path: Path) -> None:
    found = groups(tmp_path, "0::/a/b\n", a__b__memory_max="max", a__memory_max="1000", memory_max="5000")
    assert found == 1000


def test_a_container_sees_its_group_at_the_root(tmp_path: Path) -> None:
    assert groups(tmp_path, "0::/../elsewhere\n", memory_max="2000") == 2000


def test_version_one(tmp_path: Path) -> None:
    found = groups(tmp_path, "7:cpu,memory:/a\n3:cpuset:/\n", memory__a__memory_limit_in_bytes="3000")
    assert found == 3000


def test_without_groups_it_is_the_machine(tmp_path: Path) -> None:
    assert available_bytes(tmp_path, tmp_path) > GIB // 4
