"""A calculator agent on the openai client: a tool loop written by hand, several tasks at a time."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from openai import OpenAI, OpenAIError

FUNCTIONS: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "max": max,
    "min": min,
}
DESCRIPTIONS = {
    "add": "The sum of two integers.",
    "sub": "The first integer minus the second.",
    "max": "The larger of two integers.",
    "min": "The smaller of two integers.",
}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
                "required": ["a", "b"],
            },
        },
    }
    for name, description in DESCRIPTIONS.items()
]
MAX_TURNS = 3  # model calls a task
MAX_TOKENS = 64  # a call or a number fits many times over


def use_tool(name: str, arguments: str) -> str:
    """The result of a tool call as text; a call that makes no sense is answered, not raised."""
    try:
        values = json.loads(arguments)
        return str(FUNCTIONS[name](int(values["a"]), int(values["b"])))
    except (KeyError, TypeError, ValueError) as error:
        return f"error: {type(error).__name__}: {error}"


def answer(client: OpenAI, model: str, prompt: str) -> str:
    """Work on one task: call the model, run the tools it asks for, until it answers in words."""
    messages: list[Any] = [{"role": "user", "content": prompt}]
    for _ in range(MAX_TURNS):
        response = client.chat.completions.create(
            model=model, messages=messages, tools=TOOLS, temperature=1.0, max_tokens=MAX_TOKENS
        )
        message = response.choices[0].message
        if not message.tool_calls:
            return message.content or ""
        calls = [call for call in message.tool_calls if call.type == "function"]
        messages.append(
            {
                "role": "assistant",
                "content": message.content,
                "tool_calls": [
                    {
                        "id": call.id,
                        "type": "function",
                        "function": {"name": call.function.name, "arguments": call.function.arguments},
                    }
                    for call in calls
                ],
            }
        )
        for call in calls:
            result = use_tool(call.function.name, call.function.arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return ""


def main() -> None:
    """Answer the tasks of a file; a task that fails is reported and the rest go on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=Path, required=True, help="JSON lines with id and prompt")
    parser.add_argument("--concurrency", type=int, default=8, metavar="N", help="tasks at a time")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N tasks")
    parser.add_argument("--answers", type=Path, metavar="FILE", help="write JSON lines with id and answer")
    options = parser.parse_args()
    with options.tasks.open(encoding="utf-8") as lines:
        tasks = [json.loads(line) for line in lines][: options.limit]
    client = OpenAI()  # address and key from OPENAI_BASE_URL and OPENAI_API_KEY
    model = os.environ["OPENAI_MODEL"]

    def work(task: dict[str, str]) -> dict[str, str]:
        try:
            return {"id": task["id"], "answer": answer(client, model, task["prompt"])}
        except OpenAIError as error:
            print(f"{task['id']}: {error}", file=sys.stderr)
            return {"id": task["id"], "answer": "", "error": str(error)}

    with ThreadPoolExecutor(options.concurrency) as pool:
        answers = list(pool.map(work, tasks))
    if options.answers:
        options.answers.write_text("".join(json.dumps(line) + "\n" for line in answers), encoding="utf-8")
    failed = sum("error" in line for line in answers)
    print(f"{len(answers)} tasks, {failed} failed")


if __name__ == "__main__":
    main()
