"""An unmodified AutoGen team: a researcher with a tool and a writer, in turns."""

import asyncio
import os

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_core.models import ModelFamily
from autogen_ext.models.openai import OpenAIChatCompletionClient


async def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


async def main():
    model = OpenAIChatCompletionClient(
        model="m",
        base_url=os.environ["OPENAI_BASE_URL"],
        model_info={
            "vision": False,
            "function_calling": True,
            "json_output": False,
            "structured_output": False,
            "family": ModelFamily.UNKNOWN,
        },
    )
    researcher = AssistantAgent(
        "researcher",
        model,
        tools=[get_weather],
        system_message="You look things up.",
        reflect_on_tool_use=True,
    )
    writer = AssistantAgent("writer", model, system_message="You write.")
    team = RoundRobinGroupChat([researcher, writer], termination_condition=MaxMessageTermination(3))
    result = await team.run(task="How is Paris?")
    print(result.messages[-1].content)
    await model.close()


asyncio.run(main())
