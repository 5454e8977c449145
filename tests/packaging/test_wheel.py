"""The built wheel, installed as a user would: the base stays light, and its lower bounds resolve to versions that work."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "chdb", "chdb-core", "pandas", "numpy", "polars", "transformers", "pyarrow"}


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, f"{command} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def pip(environment: Path, *arguments: str | Path) -> str:
    """This environment's pip, at work in another one, which has none."""
    return run(sys.executable, "-m", "pip", "--python", environment / "python", *arguments)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, ROOT)
    (built,) = out.glob("spanloop-*.whl")
    return built


@pytest.fixture(scope="module")
def base_environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of a fresh environment in which only the wheel and what it asks for is installed, nothing pinned."""
    home = tmp_path_factory.mktemp("base")
    venv.create(home)
    pip(home / "bin", "install", "--quiet", "--no-compile", wheel)
    return home / "bin"


def test_base_install_is_light(base_environment: Path) -> None:
    listed = json.loads(pip(base_environment, "list", "--format", "json"))
    names = {package["name"].lower() for package in listed}
    assert "spanloop" in names
    assert not names & HEAVY


def test_base_install_resolves_to_the_current_distro(base_environment: Path) -> None:
    """Unpinned, pip walks back to a distro of 2024 (0.48b0) and instrumentation fails without a word."""
    code = "import importlib.metadata as m; print(m.version('opentelemetry-distro'), m.version('opentelemetry-sdk'))"
    distro, sdk = run(base_environment / "python", "-c", code).split()
    assert tuple(int(part) for part in distro.split("b")[0].split(".")) >= (0, 66)
    assert tuple(int(part) for part in sdk.split(".")[:2]) >= (1, 45)


def test_base_install_runs_the_command_and_the_hooks(base_environment: Path) -> None:
    assert "doctor" in run(base_environment / "spanloop", "--help")
    run(base_environment / "opentelemetry-instrument", base_environment / "python", "-c", "print('ran')")


def test_wheel_carries_its_data_files(base_environment: Path) -> None:
    code = (
        "from importlib.resources import files;"
        "print(len(list((files('spanloop_store') / 'migrations').iterdir())))"
    )
    assert int(run(base_environment / "python", "-c", code)) >= 2


def test_all_extras_resolve(wheel: Path, base_environment: Path, tmp_path: Path) -> None:
    """Only resolves (nothing is installed): every extra together, with the torch that is installed here."""
    import torch

    report = tmp_path / "report.json"
    constraint = tmp_path / "torch.txt"
    constraint.write_text(f"torch=={torch.__version__.split('+')[0]}\n")
    pip(
        base_environment, "install", "--quiet", "--dry-run",
        "--constraint", constraint, "--report", report, f"{wheel}[all]",
    )  # fmt: skip
    planned = {
        item["metadata"]["name"].lower(): item["metadata"]["version"]
        for item in json.loads(report.read_text())["install"]
    }
    assert planned["trl"] == "1.16.0"
    assert {"chdb", "polars", "grpcio", "aiohttp"} <= set(planned)
