"""LangChain, LangGraph and the OpenAI Agents SDK, straight to an upstream and through the gateway: what they make of it is equal."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    set_tracing_disabled,
)
from agents import function_tool as agents_tool
from langchain.agents import create_agent
from langchain_core.messages import BaseMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from pydantic import BaseModel
from tests.gateway_clients.conftest import House, async_client
from tests.gateway_clients.upstream import WORDS

QUESTION = [("system", "You count – in German."), ("user", "2+2?")]
TEXT = "".join(WORDS)


class Sum(BaseModel):
    """What structured output is asked for."""

    total: int
    words: list[str]


@tool
def add(a: float, b: float) -> float:
    """a + b"""
    return a + b


@tool
def sub(a: float, b: str) -> str:
    """a - b"""
    return f"{a} - {b}"


def chat(base_url: str, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(
        model="m", base_url=base_url, api_key="sk-upstream", max_retries=0, timeout=60, **options
    )


def plain(message: BaseMessage) -> dict[str, Any]:
    """All of it but the id that LangChain draws for each run."""
    found = message.model_dump()
    if str(found.get("id", "")).startswith(("run-", "lc_run-")):
        del found["id"]
    return found


# --- LangChain ---


@pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])
def test_langchain_invoke_stream_and_tools(house: House, responses: bool) -> None:
    def ask(base_url: str) -> list[Any]:
        model = chat(base_url, use_responses_api=responses)
        bound = model.bind_tools([add, sub])
        return [
            plain(model.invoke(QUESTION)),
            [plain(chunk) for chunk in model.stream(QUESTION)],
            plain(bound.invoke(QUESTION)),
            [plain(chunk) for chunk in bound.stream(QUESTION)],
        ]

    direct, through = house.both(ask)
    assert len(direct[1]) > 5
    assert len(direct[2]["tool_calls"]) == 2
    assert through == direct


def test_langchain_async_structured_and_embeddings(house: House) -> None:
    async def ask(base_url: str) -> list[Any]:
        model = chat(base_url, logprobs=True, stream_usage=True)
        embeddings = OpenAIEmbeddings(
            model="m", base_url=base_url, api_key="sk-upstream", check_embedding_ctx_length=False
        )
        return [
            plain(await model.ainvoke(QUESTION)),
            [plain(chunk) async for chunk in model.astream(QUESTION)],
            await model.with_structured_output(Sum, method="json_schema").ainvoke(QUESTION),
            await embeddings.aembed_documents(["eins", "zwei"]),
        ]

    direct, through = house.both(lambda base_url: asyncio.run(ask(base_url)))
    assert direct[2] == Sum(total=4, words=["zwei", "zwei"])
    assert direct[0]["response_metadata"]["logprobs"]["content"]
    assert through == direct


# --- LangGraph ---


def test_langgraph_agents(house: House) -> None:
    def ask(base_url: str) -> list[Any]:
        state = {"messages": [{"role": "user", "content": "2+2?", "id": "q"}]}
        graph = StateGraph(MessagesState)
        model = chat(base_url).bind_tools([add])
        graph.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
        graph.add_node("tools", ToolNode([add]))
        graph.add_edge(START, "model")
        graph.add_conditional_edges("model", tools_condition, {"tools": "tools", END: END})
        graph.add_edge("tools", "model")
        made = create_agent(chat(base_url), tools=[add], system_prompt="You count.")
        tokens = [
            (plain(chunk), metadata["langgraph_node"])
            for chunk, metadata in made.stream(state, stream_mode="messages")
        ]
        ended = [runner.invoke(state)["messages"] for runner in (graph.compile(), made)]
        for messages in ended:
            assert [message.type for message in messages] == ["human", "ai", "tool", "ai"]
            assert messages[-1].content == TEXT
        messages = [{**plain(message), "id": ""} for messages in ended for message in messages]
        return [messages, [({**chunk, "id": ""}, node) for chunk, node in tokens]]

    direct, through = house.both(ask)
    assert len(direct[1]) > 5
    assert through == direct


# --- OpenAI Agents SDK ---


@agents_tool
def multiply(a: float, b: float) -> float:
    """a * b"""
    return a * b


@pytest.mark.parametrize(
    "kind", [OpenAIChatCompletionsModel, OpenAIResponsesModel], ids=["chat", "responses"]
)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_agents_sdk_handoff(house: House, kind: Any, streamed: bool) -> None:
    set_tracing_disabled(True)

    async def ask(base_url: str) -> list[Any]:
        async with async_client(base_url) as client:
            model = kind(model="m", openai_client=client)
            settings = ModelSettings(temperature=0.0)
            counter = Agent(
                name="Counter",
                instructions="You count.",
                model=model,
                tools=[multiply],
                model_settings=settings,
            )
            triage = Agent(
                name="Triage",
                instructions="You hand over.",
                model=model,
                handoffs=[counter],
                model_settings=settings,
            )
            seen: list[Any] = []
            if streamed:
                running = Runner.run_streamed(triage, "2+2?")
                async for event in running.stream_events():
                    if event.type == "raw_response_event":
                        seen.append(_without_times(event.data.model_dump()))
                result: Any = running
            else:
                result = await Runner.run(triage, "2+2?")
            assert result.last_agent.name == "Counter"
            assert result.final_output == TEXT
            return [seen, result.to_input_list()]

    direct, through = house.both(lambda base_url: asyncio.run(ask(base_url)))
    assert len(direct[1]) == 6
    assert through == direct


def _without_times(value: Any) -> Any:
    """The SDK stamps what it makes of chat chunks with its own clock."""
    if isinstance(value, dict):
        return {name: _without_times(inner) for name, inner in value.items() if name != "created_at"}
    return [_without_times(inner) for inner in value] if isinstance(value, list) else value
