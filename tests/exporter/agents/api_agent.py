"""An agent that uses the optional API; the parts of it to use are its arguments."""

import asyncio
import contextlib
import sys
from concurrent.futures import ThreadPoolExecutor

import openai
from opentelemetry import trace

import spanloop

QUESTION = [{"role": "system", "content": "Add."}, {"role": "user", "content": "2 + 3?"}]
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":  2}'}}


def ask(text):
    return openai.OpenAI().chat.completions.create(model="m", messages=[{"role": "user", "content": text}])


def loop(name):
    """A model and a tool that no instrumentor knows."""
    messages = list(QUESTION)
    with spanloop.model_call("own", messages, seed=7, temperature=0, tools=[{"name": "add"}]) as call:
        answer = {"role": "assistant", "content": None, "tool_calls": [CALL]}
        call.answer(answer, finish_reason="tool_calls", response_id=f"{name}-1", output_tokens=4)
    with spanloop.tool_call("add", {"a": 2}, id="c1") as tool:
        tool.result({"sum": 5})
    messages += [answer, {"role": "tool", "tool_call_id": "c1", "content": "5"}]
    with spanloop.model_call("own", messages) as call:
        call.answer(
            "5",
            response_id=f"{name}-2",
            prompt_token_ids=[1, 2],
            completion_token_ids=[[3]],
            logprobs=[[-0.5]],
        )
    spanloop.reward(0.5, name="quality", label="fair", explanation="short")


def manual():
    with spanloop.session("s-manual", task="t-manual", run="r1", tier="gold") as session:
        assert session.id == "s-manual"
        loop("manual")
    ask("outside")


async def attempt(number):
    async with (
        spanloop.session(task="t-async", rollout=f"attempt-{number}"),
        spanloop.model_call("own", QUESTION) as call,
    ):
        await asyncio.sleep(0)
        call.answer(f"answer {number}")
        spanloop.annotate(number=number)


async def asynchronous():
    await asyncio.gather(*(attempt(number) for number in range(3)))


def untraced_tool():
    """The step between two such calls is recovered when nobody records it."""
    messages = [{"role": "user", "content": "untraced"}]
    answer = {"role": "assistant", "tool_calls": [CALL]}
    with spanloop.model_call("own", messages) as call:
        call.answer(answer)
    with spanloop.model_call(
        "own", [*messages, answer, {"role": "tool", "tool_call_id": "c1", "content": "5"}]
    ) as call:
        call.answer("5")


def rewards():
    """Of the current span; of the last call; of a call by its id, from elsewhere; of a span that is named."""
    with trace.get_tracer("agent").start_as_current_span("run") as run:
        spanloop.reward(1, name="current")
    first = ask("first")
    spanloop.reward(True, name="last")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(spanloop.reward, 0.25, name="by id", response_id=first.id).result()
    spanloop.reward(-1.0, name="ended", span=run)
    spanloop.reward(0.75, name="unknown id", response_id="nobody's")


def failing():
    with spanloop.model_call("own", QUESTION):
        raise ConnectionError("the model is away")


class Unspeakable(Exception):
    def __str__(self):
        raise ValueError("no words")


def odd():
    """Values that JSON cannot hold, and an error that cannot be told: recorded as far as they can be."""
    circular = {"role": "user"}
    circular["content"] = [circular]
    with contextlib.suppress(Unspeakable), spanloop.model_call("odd", [circular]):
        raise Unspeakable
    asked = {"id": "c2", "function": {"name": "add", "arguments": '{"a": NaN}'}}
    with spanloop.model_call("odd", QUESTION) as call:
        call.answer({"role": "assistant", "tool_calls": [asked]}, completion_token_ids=[(i for i in (3, 4))])
    with spanloop.tool_call("add", {"a": float("nan"), "b": [float("-inf")]}) as tool:
        tool.result({(1, 2): 3})


async def pieces():
    async with spanloop.session("s-left"):
        with spanloop.model_call("left", QUESTION):
            for piece in "abc":
                yield piece


async def left():
    """Only the beginning of a stream is read; the rest is closed elsewhere, when the loop ends."""
    async for _ in pieces():
        break


def fresh():
    """A session in whose own context no call was made."""
    ask("before")
    with spanloop.session("s-fresh"):
        asyncio.run(asyncio.to_thread(ask, "within"))
        spanloop.reward(1.0, name="fresh")


PARTS = {
    "manual": manual,
    "asynchronous": lambda: asyncio.run(asynchronous()),
    "untraced-tool": untraced_tool,
    "rewards": rewards,
    "failing": failing,
    "odd": odd,
    "left": lambda: asyncio.run(left()),
    "fresh": fresh,
}
for part in sys.argv[1:]:
    try:
        PARTS[part]()
    except ConnectionError as error:
        print(error)
