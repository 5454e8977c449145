"""The house's rules on imports: one direction between packages, no circles inside one, and a light start."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "spanloop_store": "store",
    "spanloop_exporter": "exporter",
    "spanloop_collector": "collector",
    "spanloop_trainer": "trainer",
    "spanloop": "cli",
}
MAY_IMPORT = {
    "spanloop_store": set(),
    "spanloop_exporter": {"spanloop_store"},
    "spanloop_collector": {"spanloop_exporter", "spanloop_store"},
    "spanloop_trainer": {"spanloop_store"},
    "spanloop": {"spanloop_collector", "spanloop_exporter", "spanloop_store", "spanloop_trainer"},
}
HEAVY = (
    "torch",
    "transformers",
    "polars",
    "pyarrow",
    "numpy",
    "chdb",
    "clickhouse_connect",
    "aiohttp",
    "grpc",
)


def modules(package: str) -> dict[str, Path]:
    folder = ROOT / FOLDERS[package]
    found = {}
    for path in sorted((folder / package).rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, *, at_import: bool = False) -> set[str]:
    """Absolute names that a module imports; `at_import`: only those that run when it is imported itself."""
    names = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if at_import and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
        waiting += ast.iter_child_nodes(node)
    return names


@pytest.mark.parametrize("package", FOLDERS)
def test_imports_run_one_way(package: str) -> None:
    forbidden = set(FOLDERS) - MAY_IMPORT[package] - {package}
    for name, path in modules(package).items():
        upward = {found for found in imports(path) if found.split(".")[0] in forbidden}
        assert not upward, f"{name} imports {', '.join(sorted(upward))}"


@pytest.mark.parametrize("package", FOLDERS)
def test_no_circles(package: str) -> None:
    known = modules(package)
    edges = {
        name: {found for found in imports(path, at_import=True) if found in known and found != name}
        for name, path in known.items()
    }
    done: set[str] = set()

    def walk(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above, name))
        if name in done:
            return
        for below in edges[name]:
            # A package's own module may import the package that holds it; Python loads that first in any case.
            if not name.startswith(f"{below}."):
                walk(below, (*above, name))
        done.add(name)

    for name in known:
        walk(name, ())


@pytest.mark.parametrize(
    "code",
    [
        "import spanloop_exporter.hooks, spanloop_exporter.distro, spanloop_exporter.launch",
        "import spanloop_store",
        "from spanloop.main import cli; cli(['--help'], standalone_mode=False)",
    ],
)
def test_a_light_start(code: str) -> None:
    """What runs inside an agent, and `spanloop --help`, load nothing heavy."""
    probe = f"import sys; {code}; print(sorted(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
