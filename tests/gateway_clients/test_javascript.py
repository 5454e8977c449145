"""The official JavaScript client from npm, straight to an upstream and through the gateway."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.gateway_clients.conftest import House

JAVASCRIPT = Path(__file__).parent / "js"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("THE JAVASCRIPT CLIENT IS NOT TESTED: npm is not on PATH; install Node.js 20 or newer")
    folder = tmp_path_factory.mktemp("js")
    for name in ("package.json", "package-lock.json", "ask.mjs"):
        shutil.copy(JAVASCRIPT / name, folder)
    install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def test_answers_and_chunks_are_equal(house: House, folder: Path) -> None:
    def ask(base_url: str) -> dict[str, Any]:
        command = ["node", "ask.mjs", base_url]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    direct, through = house.both(ask)
    assert len(direct) == 20
    assert len(direct["chatStream"]) > 5
    assert direct["tooMany"]["status"] == 429
    for name in direct:
        assert through[name] == direct[name], name
