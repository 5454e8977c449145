"""A calculator agent on LangChain's `create_agent` (a LangGraph graph), several tasks at a time with asyncio."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.errors import GraphRecursionError
from openai import OpenAIError


@tool
def add(a: int, b: int) -> str:
    """The sum of two integers."""
    return str(a + b)


@tool
def sub(a: int, b: int) -> str:
    """The first integer minus the second."""
    return str(a - b)


@tool("max")
def maximum(a: int, b: int) -> str:
    """The larger of two integers."""
    return str(max(a, b))


@tool("min")
def minimum(a: int, b: int) -> str:
    """The smaller of two integers."""
    return str(min(a, b))


MAX_STEPS = 6  # of the graph: three model calls with the tool calls between them


async def answer(agent: Any, prompt: str) -> str:
    """Work on one task."""
    state = await agent.ainvoke(
        {"messages": [{"role": "user", "content": prompt}]}, config={"recursion_limit": MAX_STEPS}
    )
    return str(state["messages"][-1].content)


async def run(tasks: list[dict[str, str]], concurrency: int) -> list[dict[str, str]]:
    """Answer all tasks; one that fails is reported and the rest go on."""
    # Address and key come from OPENAI_BASE_URL and OPENAI_API_KEY.
    model = ChatOpenAI(model=os.environ["OPENAI_MODEL"], temperature=1.0, max_completion_tokens=64)
    agent = create_agent(model, tools=[add, sub, maximum, minimum], name="calculator-langgraph")
    slots = asyncio.Semaphore(concurrency)

    async def work(task: dict[str, str]) -> dict[str, str]:
        async with slots:
            try:
                return {"id": task["id"], "answer": await answer(agent, task["prompt"])}
            except (OpenAIError, GraphRecursionError) as error:
                print(f"{task['id']}: {error}", file=sys.stderr)
                return {"id": task["id"], "answer": "", "error": str(error)}

    return list(await asyncio.gather(*(work(task) for task in tasks)))


def main() -> None:
    """Answer the tasks of a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=Path, required=True, help="JSON lines with id and prompt")
    parser.add_argument("--concurrency", type=int, default=8, metavar="N", help="tasks at a time")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N tasks")
    parser.add_argument("--answers", type=Path, metavar="FILE", help="write JSON lines with id and answer")
    options = parser.parse_args()
    with options.tasks.open(encoding="utf-8") as lines:
        tasks = [json.loads(line) for line in lines][: options.limit]
    answers = asyncio.run(run(tasks, options.concurrency))
    if options.answers:
        options.answers.write_text("".join(json.dumps(line) + "\n" for line in answers), encoding="utf-8")
    failed = sum("error" in line for line in answers)
    print(f"{len(answers)} tasks, {failed} failed")


if __name__ == "__main__":
    main()
