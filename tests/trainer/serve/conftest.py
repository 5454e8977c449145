"""A real policy server over a tiny model that has learned one tool call and one sentence by heart."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from aiohttp import web
from openai import OpenAI
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from spanloop_trainer.serve.models import LoadedModel, Models, load
from spanloop_trainer.serve.server import PolicyServer

TEMPLATE = (
    "{%- for m in messages -%}{{ '<|im_start|>' + m['role'] + '\\n' + (m['content'] or '') }}"
    "{%- for c in m['tool_calls'] or [] -%}"
    "{{ '<tool_call>{\"name\": \"' + c.function.name + '\", \"arguments\": ' + c.function.arguments + '}</tool_call>' }}"
    "{%- endfor -%}{{ '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
CALL = '<tool_call>{"name": "add", "arguments": {"a": 3,  "b": 4}}</tool_call>'
# Prompt → answer; the second blank in the arguments shows that they are passed on as they were written.
LEARNED = {"use the tool": CALL, "say it": "three plus four — das ist größer, stop here and go on"}


def build(folder: Path, seed: int, learned: dict[str, str] | None = None) -> None:
    """Write a model folder: Llama, 2 layers × 64, byte-level BPE, weights random unless something is learned."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [*LEARNED, *LEARNED.values(), "user assistant system tool"],
        trainers.BpeTrainer(
            vocab_size=340,
            special_tokens=["<|im_start|>", "<|im_end|>", "<|pad|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.add_tokens(["<tool_call>", "</tool_call>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|pad|>")
    fast.chat_template = TEMPLATE
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(fast),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            eos_token_id=fast.eos_token_id,
            pad_token_id=fast.pad_token_id,
            bos_token_id=None,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60 if learned else 0):
        for prompt, answer in (learned or {}).items():
            ids = fast(
                f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>",
                add_special_tokens=False,
                return_tensors="pt",
            )["input_ids"]
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.save_pretrained(folder)
    fast.save_pretrained(folder)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def random_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("random")
    build(folder, seed=1)
    return folder


@pytest.fixture(scope="session")
def learned_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learned")
    build(folder, seed=2, learned=LEARNED)
    return folder


@pytest.fixture(scope="session")
def random_model(random_folder: Path) -> LoadedModel:
    return load("random@1", str(random_folder))


@pytest.fixture(scope="session")
def learned_model(learned_folder: Path) -> LoadedModel:
    return load("learned@1", str(learned_folder))


@pytest.fixture(scope="session")
def run_server() -> Iterator[Callable[[Models], str]]:
    """Start the application on a free loopback port in a thread; returns its base URL."""
    stops: list[Callable[[], None]] = []

    def start(models: Models, token: str | None = None) -> str:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        runner = web.AppRunner(PolicyServer(models, token).application(), handler_cancellation=True)

        async def bind() -> int:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            return int(runner.addresses[0][1])

        port = asyncio.run_coroutine_threadsafe(bind(), loop).result(30)

        def stop() -> None:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(30)
            loop.close()

        stops.append(stop)
        return f"http://127.0.0.1:{port}/v1"

    yield start
    for stop in stops:
        stop()


@pytest.fixture(scope="session")
def base_url(
    run_server: Callable[[Models], str], random_model: LoadedModel, learned_model: LoadedModel
) -> str:
    models = Models()
    models.pin(random_model)
    models.pin(learned_model)
    return run_server(models)


@pytest.fixture
def client(base_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=base_url, api_key="none", max_retries=0) as opened:
        yield opened
