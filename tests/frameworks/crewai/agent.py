"""An unmodified CrewAI crew: a researcher with a tool and a writer, one task each."""

from crewai import LLM, Agent, Crew, Process, Task
from crewai.tools import tool


@tool("get_weather")
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


model = LLM(model="openai/gpt-4o-mini")
researcher = Agent(
    role="Researcher",
    goal="Look things up.",
    backstory="You are careful.",
    llm=model,
    tools=[get_weather],
)
writer = Agent(role="Writer", goal="Write one line.", backstory="You are brief.", llm=model)
look_up = Task(description="How is Paris?", expected_output="the weather", agent=researcher)
write = Task(description="Write a line about it.", expected_output="one line", agent=writer)
crew = Crew(agents=[researcher, writer], tasks=[look_up, write], process=Process.sequential)
print(crew.kickoff().raw)
