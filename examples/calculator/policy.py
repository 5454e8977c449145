"""Yesterday's imperfect model: an OpenAI-protocol server that calls tools well-formed, but habitually the wrong one.

It understands the question and its numbers. Then it takes, instead of the right tool, the next one of a cycle
(add → sub → max → min → add), except in one third of the traces of every operation and wording. After a tool's
result it answers with that result. It knows nothing of rewards, and nothing of Spanloop.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from typing import Any

from aiohttp import web
from tasks import Question, parse

HABIT = {"add": "sub", "sub": "max", "max": "min", "min": "add"}
RIGHT_ONE_IN = 3
_numbers = itertools.count(1)


class Policy:
    """Chooses the tool; each (operation, wording) has a random order of right and wrong of its own."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._coming: dict[tuple[str, tuple[int, str]], list[bool]] = {}

    def tool(self, question: Question) -> str:
        """The tool that is called for a question; right in exactly one of every three asked alike."""
        coming = self._coming.setdefault((question.operation, question.wording), [])
        if not coming:
            coming += [True] + [False] * (RIGHT_ONE_IN - 1)
            self._random.shuffle(coming)
        return question.operation if coming.pop() else HABIT[question.operation]

    def message(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """The assistant message that follows a conversation."""
        last = messages[-1]
        if last["role"] == "tool":
            return {"role": "assistant", "content": last["content"]}
        question = parse(last["content"]) if isinstance(last["content"], str) else None
        if question is None:
            return {"role": "assistant", "content": "I can only calculate."}
        arguments = json.dumps({"a": question.a, "b": question.b})
        call = {
            "id": f"call_{next(_numbers)}",
            "type": "function",
            "function": {"name": self.tool(question), "arguments": arguments},
        }
        return {"role": "assistant", "content": None, "tool_calls": [call]}


def application(seed: int) -> web.Application:
    """The server: `/v1/chat/completions` (no streaming) and `/v1/models`."""
    policy = Policy(seed)

    async def chat(request: web.Request) -> web.Response:
        body = await request.json()
        message = policy.message(body["messages"])
        return web.json_response(
            {
                "id": f"chatcmpl-yesterday-{next(_numbers)}",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": body["model"],
                "choices": [
                    {
                        "index": 0,
                        "message": message,
                        "finish_reason": "tool_calls" if "tool_calls" in message else "stop",
                    }
                ],
                # Rough: four characters a token. Agents expect the field, nothing here depends on it.
                "usage": {
                    "prompt_tokens": len(str(body["messages"])) // 4,
                    "completion_tokens": len(str(message)) // 4,
                    "total_tokens": len(str(body["messages"])) // 4 + len(str(message)) // 4,
                },
            }
        )

    async def models(_: web.Request) -> web.Response:
        entry = {"id": "yesterday", "object": "model", "created": 0, "owned_by": "example"}
        return web.json_response({"object": "list", "data": [entry]})

    app = web.Application(client_max_size=16 * 2**20)
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/v1/models", models)
    return app


def main() -> None:
    """Serve on loopback until stopped."""
    parser = argparse.ArgumentParser(description="Yesterday's imperfect model behind the OpenAI protocol.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    web.run_app(application(options.seed), host="127.0.0.1", port=options.port, access_log=None, print=None)


if __name__ == "__main__":
    main()
