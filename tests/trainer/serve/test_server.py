"""The policy server through the real openai client."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
import torch
from openai import AsyncOpenAI, OpenAI

from spanloop_trainer.errors import ServeError
from spanloop_trainer.serve.models import LoadedModel, Models
from spanloop_trainer.serve.server import bind_token, open_models

TOOLS: list[Any] = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
TOKENS = {"return_token_ids": True}


def ask(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def teacher_forced(
    model: LoadedModel, prompt: list[int], answer: list[int], temperature: float = 1.0
) -> list[float]:
    """Log-probabilities of an answer from one forward pass without any cache."""
    with torch.inference_mode():
        logits = model.forward(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits / temperature, -1).gather(1, torch.tensor(answer)[:, None])[:, 0].tolist()


def test_token_ids_are_the_text_and_the_templates_prompt(client: OpenAI, random_model: LoadedModel) -> None:
    got: Any = client.chat.completions.create(
        model="random@1", messages=ask("hello"), max_tokens=12, logprobs=True, extra_body=TOKENS
    )
    choice = got.choices[0]
    ids = [token for token in choice.token_ids if token not in random_model.stop_ids]
    assert random_model.decode(ids) == choice.message.content
    prompt = random_model.decode(got.prompt_token_ids)
    assert prompt == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert len(choice.logprobs.content) == len(choice.token_ids) == got.usage.completion_tokens
    assert got.usage.prompt_tokens == len(got.prompt_token_ids)
    assert got.model == "random@1"
    assert got.id.startswith("chatcmpl-")


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_logprobs_equal_a_teacher_forced_pass_among_batch_mates(
    client: OpenAI, random_model: LoadedModel, temperature: float
) -> None:
    # Different lengths, so that rows leave and slots move while others run.
    async def many() -> list[Any]:
        async with AsyncOpenAI(base_url=client.base_url, api_key="none") as opened:
            calls = [
                opened.chat.completions.create(
                    model="random@1",
                    messages=ask("x" * (number * 7 % 40 + 1)),
                    max_tokens=4 + number * 5 % 30,
                    temperature=temperature,
                    logprobs=True,
                    extra_body=TOKENS,
                )
                for number in range(48)
            ]
            return list(await asyncio.gather(*calls))

    for got in asyncio.run(many()):
        choice = got.choices[0]
        expected = teacher_forced(random_model, got.prompt_token_ids, choice.token_ids, temperature)
        assert [entry.logprob for entry in choice.logprobs.content] == pytest.approx(expected, abs=1e-4)


def test_greedy_is_the_argmax_whatever_the_batch_mates(client: OpenAI, random_model: LoadedModel) -> None:
    def greedy() -> Any:
        return client.chat.completions.create(
            model="random@1",
            messages=ask("the same"),
            max_tokens=40,
            temperature=0,
            logprobs=True,
            extra_body=TOKENS,
        )

    alone = greedy()
    answer, prompt = alone.choices[0].token_ids, alone.prompt_token_ids
    with torch.inference_mode():
        logits = random_model.forward(input_ids=torch.tensor([prompt + answer])).logits[
            0, len(prompt) - 1 : -1
        ]
    assert logits.argmax(-1).tolist() == answer
    # At temperature 0 the log-probabilities are those at temperature 1.
    expected = teacher_forced(random_model, prompt, answer)
    assert [entry.logprob for entry in alone.choices[0].logprobs.content] == pytest.approx(expected, abs=1e-4)

    async def crowd() -> list[Any]:
        async with AsyncOpenAI(base_url=client.base_url, api_key="none") as opened:
            calls = []
            for number in range(24):
                same = number % 3 == 0
                calls.append(
                    opened.chat.completions.create(
                        model="random@1",
                        messages=ask("the same" if same else "another " * (number + 1)),
                        max_tokens=40 if same else 3 + number,
                        temperature=0 if same else 1.3,
                        extra_body=TOKENS,
                    )
                )
            return list(await asyncio.gather(*calls))

    got = asyncio.run(crowd())
    assert {tuple(one.choices[0].token_ids) for one in got[::3]} == {tuple(answer)}


def test_a_seed_repeats_an_answer_and_gives_each_choice_its_own(client: OpenAI) -> None:
    def draw(seed: int) -> list[list[int]]:
        got: Any = client.chat.completions.create(
            model="random@1", messages=ask("seeded"), max_tokens=10, n=4, seed=seed, extra_body=TOKENS
        )
        return [choice.token_ids for choice in got.choices]

    first = draw(7)
    assert draw(7) == first
    assert draw(8) != first
    assert len({tuple(ids) for ids in first}) == 4


def test_nucleus_logprobs_are_of_the_renormalised_distribution(
    client: OpenAI, random_model: LoadedModel
) -> None:
    got: Any = client.chat.completions.create(
        model="random@1", messages=ask("p"), max_tokens=30, top_p=0.3, logprobs=True, extra_body=TOKENS
    )
    prompt, answer = got.prompt_token_ids, got.choices[0].token_ids
    with torch.inference_mode():
        logits = random_model.forward(input_ids=torch.tensor([prompt + answer])).logits[
            0, len(prompt) - 1 : -1
        ]
    for row, token, entry in zip(logits, answer, got.choices[0].logprobs.content, strict=True):
        probabilities = row.softmax(-1).tolist()
        order = sorted(range(len(probabilities)), key=lambda at: -probabilities[at])
        kept, total = [], 0.0
        for at in order:
            kept.append(at)
            total += probabilities[at]
            if total >= 0.3:
                break
        assert token in kept
        assert entry.logprob == pytest.approx(math.log(probabilities[token] / total), abs=1e-3)


def test_samples_follow_the_models_distribution(client: OpenAI, random_model: LoadedModel) -> None:
    got: Any = client.chat.completions.create(
        model="random@1",
        messages=ask("use the tool"),
        max_tokens=1,
        n=128,
        temperature=0.2,
        seed=5,
        extra_body=TOKENS,
    )
    with torch.inference_mode():
        logits = random_model.forward(input_ids=torch.tensor([got.prompt_token_ids])).logits[0, -1]
    probabilities = (logits / 0.2).softmax(-1)
    draws = torch.tensor([choice.token_ids[0] for choice in got.choices])
    # Mean log-probability of the draws against its expectation, in standard errors.
    values = probabilities.log()
    mean = (probabilities * values).sum()
    error = ((probabilities * (values - mean) ** 2).sum() / len(draws)).sqrt()
    assert abs(values[draws].mean() - mean) < 4 * error


def test_a_tool_call_is_parsed_with_its_arguments_as_written(client: OpenAI) -> None:
    got = client.chat.completions.create(
        model="learned@1", messages=ask("use the tool"), tools=TOOLS, temperature=0, max_tokens=60
    )
    choice = got.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls is not None
    call: Any = choice.message.tool_calls[0]
    assert (call.type, call.function.name, call.function.arguments) == (
        "function",
        "add",
        '{"a": 3,  "b": 4}',
    )


def test_without_tools_on_offer_the_same_answer_is_text(client: OpenAI) -> None:
    for extra in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        got: Any = client.chat.completions.create(
            model="learned@1", messages=ask("use the tool"), temperature=0, max_tokens=60, **extra
        )
        assert got.choices[0].finish_reason == "stop"
        assert got.choices[0].message.content.startswith("<tool_call>")


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("prompt", ["use the tool", "say it", "anything else"])
def test_a_stream_adds_up_to_the_whole_answer(client: OpenAI, prompt: str, tools: list[Any] | None) -> None:
    settings: dict[str, Any] = {"temperature": 0, "max_tokens": 60, "logprobs": True, "extra_body": TOKENS}
    if tools:
        settings["tools"] = tools
    whole: Any = client.chat.completions.create(model="learned@1", messages=ask(prompt), **settings)
    stream: Any = client.chat.completions.create(
        model="learned@1",
        messages=ask(prompt),
        stream=True,
        stream_options={"include_usage": True},
        **settings,
    )
    content, ids, calls, logprobs, finishes = "", [], [], [], []
    chunks = list(stream)
    assert chunks[0].prompt_token_ids == whole.prompt_token_ids
    assert chunks[-1].usage == whole.usage
    for chunk in chunks:
        for choice in chunk.choices:
            content += choice.delta.content or ""
            ids += getattr(choice, "token_ids", None) or []
            calls += choice.delta.tool_calls or []
            logprobs += choice.logprobs.content if choice.logprobs else []
            finishes += [choice.finish_reason] if choice.finish_reason else []
    expected = whole.choices[0]
    assert content == (expected.message.content or "")
    assert ids == expected.token_ids
    assert [entry.logprob for entry in logprobs] == pytest.approx(
        [entry.logprob for entry in expected.logprobs.content], abs=1e-4
    )
    assert finishes == [expected.finish_reason]
    assert [(call.function.name, call.function.arguments) for call in calls] == [
        (call.function.name, call.function.arguments) for call in expected.message.tool_calls or []
    ]


def test_a_stop_string_is_cut_off_in_both_forms(client: OpenAI) -> None:
    settings: dict[str, Any] = {"temperature": 0, "max_tokens": 60, "stop": ["stop here"]}
    whole = client.chat.completions.create(model="learned@1", messages=ask("say it"), **settings)
    assert whole.choices[0].message.content == "three plus four — das ist größer, "
    assert whole.choices[0].finish_reason == "stop"
    stream: Any = client.chat.completions.create(
        model="learned@1", messages=ask("say it"), stream=True, **settings
    )
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole.choices[0].message.content
    )


def test_the_limit_and_the_context_end_an_answer_with_length(client: OpenAI) -> None:
    short = client.chat.completions.create(
        model="learned@1", messages=ask("say it"), temperature=0, max_tokens=3
    )
    assert short.choices[0].finish_reason == "length"
    assert short.usage is not None
    assert short.usage.completion_tokens == 3
    long: Any = client.chat.completions.create(
        model="random@1", messages=ask("go on"), temperature=0, max_tokens=100_000, extra_body=TOKENS
    )
    if long.choices[0].finish_reason == "length":
        assert long.usage.total_tokens == 256


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"top_p": 0}, "top_p"),
        ({"temperature": -1}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "messages.0.role"),
        ({"n": 0}, "n"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"messages": ask("word " * 400)}, "messages"),
    ],
)
def test_a_bad_request_names_its_field(base_url: str, change: dict[str, Any], field: str) -> None:
    body = {"model": "random@1", "messages": ask("x"), **change}
    got = httpx.post(f"{base_url}/chat/completions", json=body)
    assert got.status_code == 400
    assert got.json()["error"]["param"] == field
    assert field in got.json()["error"]["message"]


def test_bodies_that_are_no_object_and_unknown_models_are_refused(base_url: str, client: OpenAI) -> None:
    for body in (b"{", b"[]", b"\xff"):
        assert httpx.post(f"{base_url}/chat/completions", content=body).status_code == 400
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="other@9", messages=ask("x"))
    assert caught.value.code == "model_not_found"
    assert httpx.get(f"{base_url}/nothing").json()["error"]["type"] == "invalid_request_error"


def test_models_say_that_they_give_token_ids(client: OpenAI, base_url: str) -> None:
    assert {(model.id, model.owned_by) for model in client.models.list()} == {
        ("random@1", "spanloop"),
        ("learned@1", "spanloop"),
    }
    assert httpx.get(base_url.removesuffix("/v1") + "/health").json()["status"] == "ok"


def test_a_client_that_hangs_up_frees_its_row(base_url: str, client: OpenAI) -> None:
    stream: Any = client.chat.completions.create(
        model="random@1", messages=ask("x"), stream=True, max_tokens=200, extra_body=TOKENS
    )
    next(iter(stream))
    stream.close()
    got = client.chat.completions.create(model="random@1", messages=ask("x"), max_tokens=2)
    assert got.usage is not None


def test_a_token_is_asked_for_where_one_is_set(
    run_server: Callable[..., str], random_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = Models()
    models.pin(random_model)
    url = run_server(models, "secret")
    assert httpx.get(f"{url}/models").status_code == 401
    assert httpx.get(f"{url}/models", headers={"Authorization": "Bearer secret"}).status_code == 200
    monkeypatch.delenv("SPANLOOP_TOKEN", raising=False)
    assert bind_token("127.0.0.1") is None
    with pytest.raises(ServeError, match="without a credential"):
        bind_token("0.0.0.0")
    monkeypatch.setenv("SPANLOOP_TOKEN", "t")
    assert bind_token("0.0.0.0") == "t"


def test_folders_that_are_no_models_say_so(tmp_path: Any) -> None:
    with pytest.raises(ServeError, match="not a model folder"):
        asyncio.run(open_models([f"a={tmp_path}"], None))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ServeError, match="no weights"):
        asyncio.run(open_models([f"a={tmp_path}"], None))
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ServeError, match="cannot be loaded"):
        asyncio.run(open_models([f"a={tmp_path}"], None))
    with pytest.raises(ServeError, match="not in the registry"):
        asyncio.run(open_models(["a@1"], None))
