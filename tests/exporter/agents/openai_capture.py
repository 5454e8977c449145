"""An unmodified openai agent that calls a model in every way there is; the ways to take are its arguments."""

import asyncio
import gc
import sys
from concurrent.futures import ThreadPoolExecutor

import openai
from pydantic import BaseModel

client = openai.OpenAI()
QUESTION = [{"role": "user", "content": "?"}]
REQUEST = {"model": "m", "messages": QUESTION, "seed": 7, "stop": ["END"], "tool_choice": "none"}


class Answer(BaseModel):
    number: int


def raw():
    answer = client.chat.completions.with_raw_response.create(**REQUEST)
    return answer.headers["content-type"], answer.parse().choices[0].message.content


def parse():
    answer = client.chat.completions.parse(**REQUEST, response_format=Answer)
    return type(answer).__name__, answer.choices[0].message.content


def helper():
    with client.chat.completions.stream(**REQUEST) as stream:
        return [event.type for event in stream][-1], stream.get_final_completion().choices[0].message.content


def two():
    return [choice.message.content for choice in client.chat.completions.create(**REQUEST, n=2).choices]


def stream_object():
    stream = client.chat.completions.create(**REQUEST, stream=True)
    return isinstance(stream, openai.Stream), stream.response.status_code, len(list(stream))


def closed():
    stream = client.chat.completions.create(**REQUEST, stream=True)
    first = next(stream).choices[0].delta.content
    stream.close()
    return first


def dropped():
    for chunk in client.chat.completions.create(**REQUEST, stream=True):
        return chunk.choices[0].delta.content


def raised():
    with client.chat.completions.create(**REQUEST, stream=True) as stream:
        for chunk in stream:
            raise LookupError(chunk.choices[0].delta.content)


async def dropped_async():
    async with openai.AsyncOpenAI() as other:
        async for chunk in await other.chat.completions.create(**REQUEST, stream=True):
            return chunk.choices[0].delta.content


async def gathered():
    async with openai.AsyncOpenAI() as other:
        answers = await asyncio.gather(*(other.chat.completions.create(**REQUEST, n=n) for n in (1, 2, 3)))
        return [len(answer.choices) for answer in answers]


def threads():
    with ThreadPoolExecutor(4) as pool:
        return len(list(pool.map(lambda n: client.chat.completions.create(**REQUEST, n=n), (1, 2, 3, 4))))


def azure():
    other = openai.AzureOpenAI(base_url=str(client.base_url), api_key="x", api_version="2024-10-21")
    return other.chat.completions.create(**REQUEST).choices[0].message.content


def failing():
    try:
        client.with_options(max_retries=0).chat.completions.create(**REQUEST, extra_body={"forbidden": 1})
    except openai.BadRequestError as error:
        return error.status_code, error.param


def responses():
    answer = client.responses.create(model="m", input="?", max_output_tokens=9)
    return answer.output_text


def responses_dropped():
    for event in client.responses.create(model="m", input="?", stream=True):
        if event.type == "response.output_text.delta":
            return event.delta


def responses_left():
    """Left at the event that has the whole answer; what would come after it is only the end."""
    for event in client.responses.create(model="m", input="?", stream=True):
        if event.type == "response.completed":
            return event.response.output_text


WAYS = {
    "raw": raw,
    "parse": parse,
    "helper": helper,
    "two": two,
    "stream-object": stream_object,
    "closed": closed,
    "dropped": dropped,
    "raised": raised,
    "dropped-async": lambda: asyncio.run(dropped_async()),
    "gathered": lambda: asyncio.run(gathered()),
    "threads": threads,
    "azure": azure,
    "failing": failing,
    "responses": responses,
    "responses-dropped": responses_dropped,
    "responses-left": responses_left,
}
for way in sys.argv[1:]:
    try:
        print(way, WAYS[way]())
    except LookupError as error:
        print(way, "raised", error)
    gc.collect()
