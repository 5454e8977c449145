"""An unmodified LangChain agent: create_agent with a tool; with --gather eight runs on one event loop."""

import asyncio
import sys

from langchain.agents import create_agent
from langchain.tools import tool
from langchain_openai import ChatOpenAI


@tool
def add(a: float, b: float) -> float:
    """a + b"""
    return a + b


agent = create_agent(ChatOpenAI(model="m"), tools=[add], name="adder")


def question(number):
    return {"messages": [{"role": "user", "content": f"task {number}"}]}


async def gather():
    await asyncio.gather(*(agent.ainvoke(question(number)) for number in range(8)))


if "--gather" in sys.argv:
    asyncio.run(gather())
else:
    print(agent.invoke(question(0))["messages"][-1].content)
