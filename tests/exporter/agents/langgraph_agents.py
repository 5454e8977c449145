"""Unmodified LangChain agents on LangGraph: each way of running one that is named as an argument."""

import asyncio
import sys

from langchain.agents import create_agent
from langchain.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver


@tool
def add(a: float, b: float) -> float:
    """a + b"""
    return a + b


@tool
def multiply(a: float, b: float) -> float:
    """a * b"""
    return a * b


def calculator(**options):
    return create_agent(
        ChatOpenAI(model="m", temperature=0.5),
        tools=[add, multiply],
        system_prompt="You calculate with tools.",
        name="calculator",
        **options,
    )


def question(text):
    return {"messages": [{"role": "user", "content": text}]}


def last(state):
    return state["messages"][-1].content


async def streamed_tokens(mode):
    """Token by token, as a chat window shows it."""
    text = ""
    async for message, _ in calculator().astream(question(f"{mode}: go"), stream_mode="messages"):
        if type(message).__name__ == "AIMessageChunk":
            text += message.text
    return text


def turns(mode):
    """Two conversations, interleaved; the checkpointer keeps each under its thread_id."""
    agent = calculator(checkpointer=InMemorySaver())
    for turn in ("first", "second"):
        for thread in ("red", "blue"):
            state = agent.invoke(
                question(f"{mode}: {turn} of {thread}"), {"configurable": {"thread_id": thread}}
            )
    return last(state)


def supervisor(mode):
    """One agent that hands work to two others, which it calls as tools."""
    model = ChatOpenAI(model="m")
    adder = create_agent(model, tools=[add], system_prompt="You add.", name="adder")
    multiplier = create_agent(model, tools=[multiply], system_prompt="You multiply.", name="multiplier")

    @tool
    def ask_adder(task: str) -> str:
        """Have two numbers added."""
        return last(adder.invoke(question(task)))

    @tool
    def ask_multiplier(task: str) -> str:
        """Have two numbers multiplied."""
        return last(multiplier.invoke(question(task)))

    boss = create_agent(
        model, tools=[ask_adder, ask_multiplier], system_prompt="You supervise.", name="supervisor"
    )
    return last(boss.invoke(question(f"{mode}: go")))


WAYS = {
    "invoke": lambda mode: last(calculator().invoke(question(f"{mode}: go"))),
    "ainvoke": lambda mode: last(loop.run(calculator().ainvoke(question(f"{mode}: go")))),
    "stream": lambda mode: last([*calculator().stream(question(f"{mode}: go"), stream_mode="values")][-1]),
    "astream": lambda mode: loop.run(streamed_tokens(mode)),
    "turns": turns,
    "supervisor": supervisor,
}
# LangChain keeps its HTTP client for all models, so that they share one loop.
with asyncio.Runner() as loop:
    for mode in sys.argv[1:]:
        print(WAYS[mode](mode))
