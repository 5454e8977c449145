"""An unmodified LangChain program that calls one model in the ways that are its arguments."""

import asyncio
import sys

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


@tool
def add(a: float, b: float) -> float:
    """a + b"""
    return a + b


def model():
    return ChatOpenAI(model="m", seed=7, stop=["END"])


def invoke():
    return model().invoke("?").content


def tools():
    answer = model().bind_tools([add], tool_choice="add").invoke("tools?")
    return answer.tool_calls[0]["args"]


def stream():
    return "".join(chunk.content for chunk in model().stream("?"))


async def asynchronous():
    # On one loop: LangChain keeps one HTTP client for all of its models.
    chat = model()
    answers = await asyncio.gather(chat.ainvoke("?"), chat.ainvoke("?"))
    return len(answers), "".join([chunk.content async for chunk in chat.astream("?")])


def responses():
    return ChatOpenAI(model="m", use_responses_api=True).invoke("?").text


def dropped():
    for chunk in model().stream("?"):
        return chunk.content


WAYS = {
    "invoke": invoke,
    "tools": tools,
    "stream": stream,
    "asynchronous": lambda: asyncio.run(asynchronous()),
    "responses": responses,
    "dropped": dropped,
}
for way in sys.argv[1:]:
    print(way, WAYS[way]())
