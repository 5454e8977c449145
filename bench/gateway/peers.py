"""LiteLLM's proxy, in a virtual environment of its own, set up as its page on production use recommends, without a database."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.gateway.process import Running

KEY = f"sk-{secrets.token_hex(32)}"  # it starts with no weaker one
_START_S = 180.0
_CONFIG = """\
model_list:
  - model_name: m
    litellm_params:
      model: openai/m
      api_base: {upstream}
      api_key: {key}
litellm_settings:
  request_timeout: 600
  set_verbose: false
  json_logs: true
"""


def install(folder: Path) -> None:
    """Make the environment (it is large: a gigabyte, no torch)."""
    subprocess.run([sys.executable, "-m", "venv", str(folder / "litellm")], check=True)
    subprocess.run(
        [str(folder / "litellm" / "bin" / "pip"), "install", "--quiet", "litellm[proxy]"], check=True
    )


def program(folder: Path) -> Path:
    """Where the proxy's program would be."""
    return folder / "litellm" / "bin" / "litellm"


def version(folder: Path) -> str:
    """Of the installed package."""
    python = str(folder / "litellm" / "bin" / "python")
    code = "import importlib.metadata as m; print(m.version('litellm'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@contextmanager
def proxy(folder: Path, upstream: str, work: Path) -> Iterator[Running]:
    """One worker of it (as ours is one process), before `upstream`.

    Raises:
        TimeoutError: it did not answer in time; its log is in `work`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = work / "litellm.yaml"
    config.write_text(_CONFIG.format(upstream=upstream, key=KEY))
    command = [str(program(folder)), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    environment = {
        **os.environ,
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        "LITELLM_MASTER_KEY": KEY,
    }
    environment |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # it would fetch its list of prices
    with (work / "litellm.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--num_workers", "1"],
            stdout=log, stderr=log, env=environment, start_new_session=True, cwd=work,
        )  # fmt: skip
        try:
            url = f"http://127.0.0.1:{port}"
            _await(f"{url}/health/liveliness", process, work / "litellm.log")
            yield Running(url, process.pid)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _await(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (OSError, urllib.error.URLError):
            time.sleep(0.5)
    raise TimeoutError(f"the proxy did not start: {log.read_text(errors='replace')[-2000:]}")
