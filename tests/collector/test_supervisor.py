"""One child process under the supervisor, whatever it prints."""

from __future__ import annotations

import asyncio
import errno
import io
import sys

import pytest

from spanloop_collector.errors import ChildFailed
from spanloop_collector.supervisor import Child

ADDRESSES = '{"pid": 1, "store": "s", "clickhouse": "c", "otlp_http": "h", "otlp_grpc": "g", "gateway": "w"}'
PATIENCE_S = 60


def child(code: str) -> Child:
    return Child("capture", [sys.executable, "-c", code])


def test_a_child_is_never_stopped_by_a_full_pipe(capfd: pytest.CaptureFixture[str]) -> None:
    """Lines longer than any buffer on both pipes, then a last word and a clean end."""
    code = f"""if True:
        import sys
        print({ADDRESSES!r}, flush=True)
        for stream in (sys.stderr, sys.stdout):
            stream.write("~" * 300_000)
            stream.flush()
        sys.stderr.write("\\nlast word\\n")
    """

    async def scenario() -> int:
        process = child(code)
        assert (await process.start_and_read()).otlp_http == "h"
        assert process._process is not None
        status = await asyncio.wait_for(process._process.wait(), PATIENCE_S)
        await process.stop()
        return status

    assert asyncio.run(scenario()) == 0
    shown = capfd.readouterr().err
    assert shown.count("~") == 300_000  # a sign that nothing else writes
    assert "capture: last word" in shown


class Gone(io.StringIO):
    """A pipe whose reader has ended."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_a_child_goes_on_when_nobody_reads_our_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """`spanloop up 2>&1 | head`: its pipe must be emptied all the same, or it stops at a log line."""
    code = f"""if True:
        import sys
        print({ADDRESSES!r}, flush=True)
        for _ in range(300):
            sys.stderr.write("x" * 1000 + "\\n")
            sys.stderr.flush()
    """

    async def scenario() -> int:
        process = child(code)
        await process.start_and_read()
        assert process._process is not None
        status = await asyncio.wait_for(process._process.wait(), PATIENCE_S)
        await process.stop()
        return status

    monkeypatch.setattr(sys, "stderr", Gone())
    assert asyncio.run(scenario()) == 0


def test_a_child_that_prints_something_else_is_a_clear_failure() -> None:
    async def scenario() -> None:
        process = child("print('Welcome!')")
        with pytest.raises(ChildFailed, match="Welcome"):
            await process.start_and_read()
        await process.stop()

    asyncio.run(scenario())


def test_a_child_that_cannot_be_started_now_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """No memory for a process, say: nobody else would start it later."""

    async def scenario() -> None:
        process = child(f"print({ADDRESSES!r})")
        await process.start_and_read()
        first = process._process
        working, process.arguments = process.arguments, ["/nonexistent/program"]
        keeper = asyncio.create_task(process.keep())
        while "cannot be started" not in caplog.text:
            assert not keeper.done(), keeper.exception()
            await asyncio.sleep(0.01)
        process.arguments = working
        while process._process is first:
            await asyncio.sleep(0.01)
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        await process.stop()

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_S))
