"""curl, and bytes on the wire: what nothing had to be taken out of arrives byte for byte."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading

import pytest
from tests.gateway_clients.conftest import House
from tests.gateway_clients.upstream import WORDS

BODY = '{ "model":"%s",  "messages":[{"role":"user","content":"2+2? \\u00e9"}], "stream":%s }'
# Of one connection, or of whoever writes it.
OF_THE_CONNECTION = {"date", "server", "connection", "transfer-encoding", "content-length"}


@pytest.fixture(scope="module")
def curl() -> str:
    found = shutil.which("curl")
    if found is None:
        pytest.skip("CURL IS NOT TESTED: it is not on PATH")
    return found


def run(curl: str, *options: str) -> tuple[str, dict[str, str], bytes]:
    """Status line, headers and body of one call."""
    done = subprocess.run(
        [curl, "-sS", "-i", "--max-time", "20", *options], capture_output=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    pairs = (line.split(": ", 1) for line in lines)
    return status, {name.lower(): text for name, text in pairs if name.lower() not in OF_THE_CONNECTION}, body


def post(curl: str, url: str, body: str, *options: str) -> tuple[str, dict[str, str], bytes]:
    headers = ("-H", "content-type: application/json", "-H", "authorization: Bearer sk-upstream")
    return run(curl, *headers, *options, "-d", body, url)


@pytest.mark.parametrize(
    ("model", "stream"),
    [("m", "false"), ("m", "true"), ("commented", "true"), ("error-event", "true"), ("status-429", "true")],
)
def test_chat_byte_for_byte(houses: dict[str, House], curl: str, model: str, stream: str) -> None:
    options = ("-N",) if stream == "true" else ("--compressed",)

    def ask(base_url: str) -> tuple[str, dict[str, str], bytes]:
        return post(curl, f"{base_url}/chat/completions", BODY % (model, stream), *options)

    direct, through = houses["openai"].both(ask)
    assert len(direct[2]) > 100
    assert through == direct
    # The request, too: its order and blanks are the client's.
    assert houses["openai"].upstream.bodies[-2:] == [(BODY % (model, stream)).encode()] * 2


@pytest.mark.parametrize("stream", ["false", "true"])
def test_what_was_added_is_cut_out_of_the_text(houses: dict[str, House], curl: str, stream: str) -> None:
    """Only that: blanks, order and letters of all else are the upstream's."""

    def ask(base_url: str) -> tuple[str, dict[str, str], bytes]:
        return post(curl, f"{base_url}/chat/completions", BODY % ("m", stream), "-N")

    direct, through = houses["vllm"].both(ask)
    assert through == direct
    sent = json.loads(houses["vllm"].upstream.bodies[-1])
    assert sent["return_token_ids"] is True
    assert sent["logprobs"] is True


def test_other_paths_hear_what_the_client_sent(house: House, curl: str) -> None:
    def ask(base_url: str) -> list[tuple[str, dict[str, str], bytes]]:
        url = f"{base_url}/vector_stores/a%2Fb%20c?limit=2&after=%C3%A9"
        sent = ("-H", "x-custom: ü", "-H", "cookie: a=b", "-H", f"traceparent: 00-{1:032x}-{2:016x}-01")
        bare = ("-H", "accept:", "-H", "user-agent:")
        return [
            run(curl, "-X", method, *headers, url)
            for method in ("GET", "POST", "DELETE", "PATCH", "OPTIONS")
            for headers in ((), sent, bare, ("--compressed",))
        ]

    direct, through = house.both(ask)
    assert through == direct


def test_a_stream_comes_as_it_is_made(house: House, curl: str) -> None:
    """The upstream makes the next event when curl has printed the one before."""
    house.upstream.gate = threading.Semaphore(0)
    url = f"{house.through}/chat/completions"
    command = [curl, "-sS", "-N", "--max-time", "20", "-H", "content-type: application/json"]
    try:
        with subprocess.Popen(
            [*command, "-d", BODY % ("m", "true"), url], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            seen = []
            for line in process.stdout:
                if line.startswith("data: "):
                    seen.append(line)
                    house.upstream.gate.release()
        assert process.returncode == 0
    finally:
        house.upstream.gate = None
    assert seen[-1] == "data: [DONE]\n"
    assert len(seen) == len(WORDS) + 3
