"""An unmodified openai agent over chat completions: a tool loop in each way of calling that is named as an argument."""

import asyncio
import json
import sys

import openai

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
            },
        },
    }
    for name, description in (("add", "a + b"), ("multiply", "a * b"))
]
REQUEST = {"model": "m", "tools": TOOLS, "temperature": 0.5, "seed": 7, "max_tokens": 200}


def start(mode):
    return [
        {"role": "system", "content": "You calculate with tools."},
        {"role": "user", "content": f"{mode}: what is 2 + 3, and what is 4 · 5?"},
    ]


def use(call):
    given = json.loads(call["function"]["arguments"])
    results = {"add": given["a"] + given["b"], "multiply": given["a"] * given["b"]}
    result = results[call["function"]["name"]]
    return {"role": "tool", "tool_call_id": call["id"], "content": str(result)}


class Merged:
    """The message that a stream's chunks add up to."""

    def __init__(self):
        self.content = ""
        self.calls = {}

    def add(self, chunk):
        for choice in chunk.choices:
            self.content += choice.delta.content or ""
            for delta in choice.delta.tool_calls or []:
                call = self.calls.setdefault(
                    delta.index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
                )
                call["id"] += delta.id or ""
                call["function"]["name"] += delta.function.name or ""
                call["function"]["arguments"] += delta.function.arguments or ""

    def message(self):
        message = {"role": "assistant", "content": self.content or None}
        return message | ({"tool_calls": list(self.calls.values())} if self.calls else {})


def run(mode, stream):
    client = openai.OpenAI()
    messages = start(mode)
    while True:
        answer = client.chat.completions.create(messages=messages, stream=stream, **REQUEST)
        if stream:
            merged = Merged()
            for chunk in answer:
                merged.add(chunk)
            message = merged.message()
        else:
            message = answer.choices[0].message.model_dump(exclude_none=True)
        messages.append(message)
        if not message.get("tool_calls"):
            return message["content"]
        messages += [use(call) for call in message["tool_calls"]]


async def run_async(mode, stream):
    messages = start(mode)
    async with openai.AsyncOpenAI() as client:
        while True:
            answer = await client.chat.completions.create(messages=messages, stream=stream, **REQUEST)
            if stream:
                merged = Merged()
                async for chunk in answer:
                    merged.add(chunk)
                message = merged.message()
            else:
                message = answer.choices[0].message.model_dump(exclude_none=True)
            messages.append(message)
            if not message.get("tool_calls"):
                return message["content"]
            messages += [use(call) for call in message["tool_calls"]]


def several(mode, stream):
    """Three answers to one prompt, as best-of-n sampling asks for them."""
    answer = openai.OpenAI().chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": f"{mode}: say a number."}],
        n=3,
        stream=stream,
    )
    if not stream:
        return " ".join(choice.message.content for choice in answer.choices)
    texts = ["", "", ""]
    for chunk in answer:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    return " ".join(texts)


WAYS = {
    "sync": lambda mode: run(mode, stream=False),
    "stream": lambda mode: run(mode, stream=True),
    "async": lambda mode: asyncio.run(run_async(mode, stream=False)),
    "async-stream": lambda mode: asyncio.run(run_async(mode, stream=True)),
    "several": lambda mode: several(mode, stream=False),
    "several-stream": lambda mode: several(mode, stream=True),
}
for mode in sys.argv[1:]:
    print(WAYS[mode](mode))
