"""A plain server of OpenAI's chat completions for agents under test: a scripted answer a prompt, nothing of ours."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Message = dict[str, Any]


class Refused(Exception):
    """The stub answers with this status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def tool_call(name: str, arguments: str) -> Message:
    """An assistant message that calls one tool."""
    call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


@contextmanager
def serving(respond: Callable[[Message], Message]) -> Iterator[tuple[str, list[Message]]]:
    """Serve on a free port; yields the base URL (with /v1) and the list of request bodies so far."""
    requests: list[Message] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append(body)
            try:
                status, answer = 200, completion(body, respond(body))
            except Refused as refused:
                status, answer = (
                    refused.status,
                    {"error": {"message": "scripted failure", "type": "server_error"}},
                )
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def completion(body: Message, message: Message) -> Message:
    """The response object around an assistant message."""
    reason = "tool_calls" if message.get("tool_calls") else "stop"
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
