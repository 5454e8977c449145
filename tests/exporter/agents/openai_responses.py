"""An unmodified openai agent over the Responses API: a tool loop in each way of calling that is named as an argument."""

import asyncio
import json
import sys

import openai

TOOLS = [
    {
        "type": "function",
        "name": name,
        "description": description,
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}},
    }
    for name, description in (("add", "a + b"), ("multiply", "a * b"))
]
REQUEST = {"model": "m", "tools": TOOLS, "instructions": "You calculate with tools.", "temperature": 0.5}


def start(mode):
    return [{"role": "user", "content": f"{mode}: what is 2 + 3, and what is 4 · 5?"}]


def use(item):
    given = json.loads(item.arguments)
    results = {"add": given["a"] + given["b"], "multiply": given["a"] * given["b"]}
    return {"type": "function_call_output", "call_id": item.call_id, "output": str(results[item.name])}


def follow(items, answer):
    results = [use(item) for item in answer.output if item.type == "function_call"]
    return [*items, *(item.model_dump(exclude_none=True) for item in answer.output), *results]


def run(mode, stream):
    client = openai.OpenAI()
    items = start(mode)
    while True:
        if stream:
            for event in client.responses.create(input=items, stream=True, **REQUEST):
                if event.type == "response.completed":
                    answer = event.response
        else:
            answer = client.responses.create(input=items, **REQUEST)
        if not any(item.type == "function_call" for item in answer.output):
            return answer.output_text
        items = follow(items, answer)


async def run_async(mode, stream):
    items = start(mode)
    async with openai.AsyncOpenAI() as client:
        while True:
            if stream:
                async for event in await client.responses.create(input=items, stream=True, **REQUEST):
                    if event.type == "response.completed":
                        answer = event.response
            else:
                answer = await client.responses.create(input=items, **REQUEST)
            if not any(item.type == "function_call" for item in answer.output):
                return answer.output_text
            items = follow(items, answer)


def previous(mode):
    """The server keeps the history: each request says only what is new."""
    client = openai.OpenAI()
    answer = client.responses.create(input=start(mode), **REQUEST)
    while calls := [item for item in answer.output if item.type == "function_call"]:
        results = [use(item) for item in calls]
        answer = client.responses.create(input=results, previous_response_id=answer.id, **REQUEST)
    return answer.output_text


WAYS = {
    "sync": lambda mode: run(mode, stream=False),
    "stream": lambda mode: run(mode, stream=True),
    "async": lambda mode: asyncio.run(run_async(mode, stream=False)),
    "async-stream": lambda mode: asyncio.run(run_async(mode, stream=True)),
    "previous": previous,
}
for mode in sys.argv[1:]:
    print(WAYS[mode](mode))
