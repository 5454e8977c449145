"""An unmodified Pydantic AI agent with a tool: a whole run, then a streamed one that goes on with its messages."""

import asyncio

from pydantic_ai import Agent

agent = Agent("openai:m", name="forecaster", system_prompt="You know the weather.")


@agent.tool_plain
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


async def main():
    first = await agent.run("How is Paris?")
    print(first.output)
    async with agent.run_stream("And Rome?", message_history=first.all_messages()) as second:
        print(await second.get_output())


asyncio.run(main())
