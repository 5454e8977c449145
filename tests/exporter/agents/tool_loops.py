"""Tool loops over the plain openai client that differ in how results come back; the loops to run are the arguments.

Some emit spans for their tools, as decorators of tracing libraries do; the rest leave that to whoever traces them.
"""

import contextlib
import contextvars
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import openai
from opentelemetry import trace

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
SEARCH = {"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}
tracer = trace.get_tracer("some.decorator")


def ask(messages, **request):
    request = {"model": "m", "messages": messages, "tools": TOOLS, **request}
    return openai.OpenAI().chat.completions.create(**request).choices[0].message


def result(call, use):
    return {"role": "tool", "tool_call_id": call.id, "content": str(use(json.loads(call.function.arguments)))}


def loop(task, use, keep=lambda message: message, **request):
    messages = [{"role": "user", "content": task}]
    while True:
        message = ask(messages, **request)
        if not message.tool_calls:
            return [*messages, keep(message)]
        messages.append(keep(message))
        messages += [result(call, use) for call in message.tool_calls]


def add(given):
    return given["a"] + given["b"]


def objects():
    """The client's own message objects go back as they are."""
    loop("objects", add)


def replayed():
    """The whole history is sent again, twice, as chats do."""
    messages = loop("replayed", add, keep=lambda message: message.model_dump(exclude_none=True))
    for text in ("thanks", "bye"):
        messages += [{"role": "user", "content": text}]
        ask(messages)


def threads():
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: loop(f"threads {number}", add), range(4)))


def attempts():
    """The same task in several threads at once, as rollouts do."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: loop("attempts", lambda given: number, seed=number), range(4)))


def decorated():
    def use(given):
        with tracer.start_as_current_span("add.tool", attributes={"traceloop.span.kind": "tool"}):
            return add(given)

    loop("decorated", use)


def renamed():
    """Under a span of its own, with a tool span of another name."""

    def use(given):
        with tracer.start_as_current_span("calculator", attributes={"openinference.span.kind": "TOOL"}):
            return add(given)

    with tracer.start_as_current_span("run"):
        loop("renamed", use)


def nested():
    """The tool of a plain loop runs a traced tool of another name; that one is no span of this tool."""

    def use(given):
        with (
            tracer.start_as_current_span("inner agent"),
            tracer.start_as_current_span("look", attributes={"gen_ai.operation.name": "execute_tool"}),
        ):
            return add(given)

    with tracer.start_as_current_span("run"):
        loop("nested", use)


def resumed():
    """A conversation that another process began: one result is new, one was used there already."""

    def asked(number):
        function = {"name": "add", "arguments": f'{{"a": {number}, "b": 0}}'}
        return {
            "role": "assistant",
            "tool_calls": [{"id": f"far_{number}", "type": "function", "function": function}],
        }

    ask(
        [
            {"role": "user", "content": "resumed"},
            asked(1),
            {"role": "tool", "tool_call_id": "far_1", "content": "1"},
            asked(2),
            {"role": "tool", "tool_call_id": "far_2", "content": "2"},
        ]
    )


def retried():
    """The call that brings the result fails, and is made again."""
    messages = [{"role": "user", "content": "retried"}]
    message = ask(messages)
    messages += [message, result(message.tool_calls[0], add)]
    try:
        openai.OpenAI(max_retries=0).chat.completions.create(
            model="m", messages=messages, extra_body={"forbidden": 1}
        )
    except openai.BadRequestError:
        ask(messages)


def mixed():
    """Of two tools that are asked for at once, the second has a span of its own."""
    messages = [{"role": "user", "content": "mixed"}]
    with tracer.start_as_current_span("run"):
        message = ask(messages, tools=[*TOOLS, SEARCH])
        with tracer.start_as_current_span("search", attributes={"traceloop.span.kind": "tool"}):
            results = [result(call, add) for call in message.tool_calls]
        ask([*messages, message, *results], tools=[*TOOLS, SEARCH])


def polled():
    """The same question to the same tool until it gives another answer."""
    answers = iter(("wait", "wait", "ready"))
    loop("polled", lambda given: next(answers))


def crowd():
    """More conversations than a server has ids for, all at the same step."""
    asked = []
    for number in range(20):
        messages = [{"role": "user", "content": f"crowd {number}"}]
        message = ask(messages)
        asked.append([*messages, message, result(message.tool_calls[0], lambda given, number=number: number)])
    for messages in asked:
        ask(messages)


def hiccup():
    """Two attempts at one task side by side; the call that brings the first one's result fails, and is made again."""
    prompt = [{"role": "user", "content": "hiccup"}]
    attempts = [contextvars.copy_context() for _ in range(2)]
    conversations = []
    for seed, attempt in enumerate(attempts):
        message = attempt.run(ask, prompt, seed=seed)
        conversations.append([*prompt, message, result(message.tool_calls[0], lambda given, seed=seed: seed)])
    with contextlib.suppress(openai.BadRequestError):
        attempts[0].run(ask, conversations[0], extra_body={"forbidden": 1})
    for attempt, messages in zip(attempts, conversations, strict=True):
        attempt.run(ask, messages)


LOOPS = [
    objects,
    replayed,
    threads,
    attempts,
    decorated,
    renamed,
    nested,
    resumed,
    retried,
    mixed,
    polled,
    crowd,
    hiccup,
]
for name in sys.argv[1:]:
    {function.__name__: function for function in LOOPS}[name]()
