"""On the light base install, a command that needs more says which extra brings it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tests.cli.test_bad_input import one_message

from spanloop.main import COMMANDS, EXTRAS

ROOT = Path(__file__).parents[2]
# As if they were not installed: a None in sys.modules is ModuleNotFoundError.
_CODE = """
import sys
sys.modules |= dict.fromkeys(("aiohttp", "grpc", "polars", "numpy", "torch", "jinja2", "pydantic", "pyarrow"))
from spanloop.main import main
main()
"""


@pytest.mark.parametrize(
    "words",
    [
        ("up",),
        ("import", "file.json"),
        ("build", "--out", "d"),
        ("train", "--dataset", "d", "--model", "m", "--out", "o"),
        ("serve", "m=m"),
        ("evaluate", "--dataset", "d", "--baseline", "m@1", "--candidate", "m@2"),
        ("report", "--run", "r"),
        ("show", "--dataset", "d"),
    ],
    ids=lambda words: words[0],
)
def test_the_extra_is_named(words: tuple[str, ...], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CODE, *words],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        check=False,
    )
    said = one_message(done.returncode, done.stderr)
    assert f"pip install 'spanloop[{EXTRAS[words[0]]}]'" in said
    assert list(tmp_path.iterdir()) == []


def test_extras_are_real() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(EXTRAS) <= set(COMMANDS)
    assert set(EXTRAS.values()) <= set(project["optional-dependencies"])
