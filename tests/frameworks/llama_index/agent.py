"""An unmodified LlamaIndex agent with a tool."""

import asyncio
import os

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.llms.openai_like import OpenAILike


def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


async def main():
    model = OpenAILike(
        model="m",
        api_base=os.environ["OPENAI_BASE_URL"],
        api_key="x",
        is_chat_model=True,
        is_function_calling_model=True,
    )
    agent = FunctionAgent(
        name="forecaster", llm=model, tools=[get_weather], system_prompt="You know the weather."
    )
    print(await agent.run("How is Paris?"))


asyncio.run(main())
