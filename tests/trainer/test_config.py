"""`spanloop.toml`: what is accepted, and how mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from spanloop_trainer.config import Config, load_config
from spanloop_trainer.errors import ConfigError

TEXT = """
[[tasks]]
file = "tasks/train.jsonl"
split = "train"
[[rewards]]
name = "exact"
expression = "CAST(TRIM(answer) = expected AS DOUBLE)"
[credit]
method = "rloo"
"""


def write(folder: Path, text: str, tasks: str = '{"id": "1", "prompt": "p"}\n') -> Path:
    (folder / "tasks").mkdir(exist_ok=True)
    (folder / "tasks" / "train.jsonl").write_text(tasks)
    (folder / "spanloop.toml").write_text(text)
    return folder / "spanloop.toml"


def test_reads_every_part_and_finds_task_files_beside_it(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, TEXT))
    assert config.credit.method == "rloo"
    assert config.rewards[0].weight == 1.0
    assert config.task_path(config.tasks[0]) == tmp_path / "tasks" / "train.jsonl"


def test_no_file_means_defaults() -> None:
    assert load_config(None) == Config()


def test_the_hash_follows_settings_and_task_content_but_not_the_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = load_config(write(tmp_path / "a", TEXT)).content_hash()
    assert load_config(write(tmp_path / "b", TEXT)).content_hash() == first
    assert load_config(write(tmp_path / "b", TEXT, '{"id": "2", "prompt": "p"}\n')).content_hash() != first
    assert load_config(write(tmp_path / "b", TEXT.replace("TRIM", "UPPER"))).content_hash() != first


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[[tasks", "is not TOML"),
        ("[credit]\nmethod = 'best'", "credit.method"),
        ("[credit]\nmetod = 'identical'", "credit.metod"),
        ("[[tasks]]\nfile = 'nowhere.jsonl'\nsplit = 'train'", "nowhere.jsonl"),
        ("[[tasks]]\nfile = 'tasks/train.jsonl'\nsplit = 'dev'", "split"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load_config(write(tmp_path, text))


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        load_config(tmp_path / "absent.toml")
