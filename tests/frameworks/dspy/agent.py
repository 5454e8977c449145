"""An unmodified DSPy program: ReAct with a tool."""

import os

import dspy


def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


dspy.configure(lm=dspy.LM("openai/m", api_base=os.environ["OPENAI_BASE_URL"], cache=False))
program = dspy.ReAct("question -> answer", tools=[get_weather], max_iters=3)
print(program(question="How is Paris?").answer)
