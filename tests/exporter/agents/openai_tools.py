"""An unmodified openai agent: a tool loop; with --threads several tasks at once, with --async on one event loop."""

import asyncio
import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import openai

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "a + b",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
            },
        },
    }
]


def run(client, task):
    messages = [{"role": "user", "content": task}]
    while True:
        answer = client.chat.completions.create(model="m", messages=messages, tools=TOOLS, temperature=0.5)
        message = answer.choices[0].message
        if not message.tool_calls:
            return message.content
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls:
            arguments = json.loads(call.function.arguments)
            messages.append(
                {"role": "tool", "tool_call_id": call.id, "content": str(arguments["a"] + arguments["b"])}
            )


async def run_async(client, task):
    stream = await client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": task}], stream=True
    )
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def all_async(tasks):
    async with openai.AsyncOpenAI() as client:
        return await asyncio.gather(*(run_async(client, task) for task in tasks))


tasks = [f"task {number}" for number in range(8)]
if "--threads" in sys.argv:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda task: run(openai.OpenAI(), task), tasks))
elif "--async" in sys.argv:
    asyncio.run(all_async(tasks))
else:
    print(run(openai.OpenAI(), tasks[0]))
if "--killed" in sys.argv:
    os.kill(os.getpid(), signal.SIGTERM)
    print("not reached")
