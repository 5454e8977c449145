"""Unmodified agents of the OpenAI Agents SDK: a handoff and agents as tools, over each API, as named by the arguments."""

import asyncio
import sys

from agents import Agent, Runner, function_tool, set_default_openai_api, set_default_openai_key


@function_tool
def add(a: float, b: float) -> float:
    """a + b"""
    return a + b


@function_tool
def multiply(a: float, b: float) -> float:
    """a * b"""
    return a * b


adder = Agent(name="Adder", instructions="You add.", model="m", tools=[add])
multiplier = Agent(name="Multiplier", instructions="You multiply.", model="m", tools=[multiply])
TEAMS = {
    "handoff": Agent(
        name="Triage",
        instructions="You hand over.",
        model="m",
        handoffs=[adder, multiplier],
    ),
    "tools": Agent(
        name="Boss",
        instructions="You supervise.",
        model="m",
        tools=[
            adder.as_tool("ask_adder", "Have two numbers added."),
            multiplier.as_tool("ask_multiplier", "Have two numbers multiplied."),
        ],
    ),
}


async def streamed(team, question):
    result = Runner.run_streamed(team, question)
    async for _ in result.stream_events():
        pass
    return result.final_output


async def main(modes):
    # Not for the SDK's own trace upload: the server is not OpenAI's.
    set_default_openai_key("x", use_for_tracing=False)
    for mode in modes:
        api, team, way = mode.split("-")
        set_default_openai_api(api)
        question = f"{mode}: go"
        if way == "stream":
            print(await streamed(TEAMS[team], question))
        else:
            print((await Runner.run(TEAMS[team], question)).final_output)


asyncio.run(main(sys.argv[1:]))
