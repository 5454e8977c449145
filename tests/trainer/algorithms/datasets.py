"""Small models and datasets for the trainer's tests, in the columns of `transitions.parquet`."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import polars as pl
import torch

from spanloop_trainer.models import LoadedModel, find_model, load
from spanloop_trainer.rendering import ChatTemplate, end_of_turn, render_transition
from spanloop_trainer.transform.datasets.dataset import write_dataset
from spanloop_trainer.transform.datasets.schema import TRANSITIONS

TEMPLATE = """{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\n' + message['content'] -}}
{%- for call in message['tool_calls'] or [] -%}
{{- '<tool_call>{"name": "' + call['function']['name'] + '", "arguments": ' -}}
{{- call['function']['arguments'] | tojson + '}</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}


def model_folder(folder: Path, **changes: Any) -> Path:
    """A folder with a configuration and a chat template, and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def transitions(episodes: int, seed: int = 0, samples: int = 1) -> pl.DataFrame:
    """Two-call episodes: a tool call, then the answer; `samples` episodes a task, half of them rewarded."""
    rng = random.Random(seed)
    rows = []
    for episode in range(episodes):
        first, second = rng.randrange(100), rng.randrange(100)
        user = {"role": "user", "content": f"sum of {first} and {second}?"}
        arguments = json.dumps({"a": first, "b": second})
        name = rng.choice(["add", "sub"])
        call = {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": f"c{episode}", "type": "function", "function": {"name": name, "arguments": arguments}}
            ],
        }
        result = {"role": "tool", "tool_call_id": f"c{episode}", "content": str(first + second)}
        answer = {"role": "assistant", "content": str(first + second)}
        for step, (state, action) in enumerate([([user], call), ([user, call, result], answer)]):
            rows.append(
                {
                    "episode_id": f"e{episode:04d}",
                    "step": step,
                    "choice": 0,
                    "task_id": f"t{episode // samples:04d}",
                    "agent": "calculator",
                    "trace_id": f"trace{episode}",
                    "span_id": f"span{episode}-{step}",
                    "state": json.dumps(state),
                    "action": json.dumps(action),
                    "done": step == 1,
                    "status": "ok",
                    "reward": 1.0 if name == "add" else 0.0,
                    "return_": 1.0 if name == "add" else 0.0,
                    "advantage": 1.0 if name == "add" else 0.0,
                    "sampling": {"temperature": 1.0},
                    "weight": 1.0,
                    "split": "train",
                }
            )
    return pl.DataFrame(rows, schema=TRANSITIONS)


def tiny_model(folder: Path, frame: pl.DataFrame, seed: int = 0) -> LoadedModel:
    """Fresh weights and a tokenizer trained on `frame`."""

    def texts(template: ChatTemplate) -> list[str]:
        rendered = [
            render_transition(template, r["state"], r["tools"], r["action"]) for r in frame.to_dicts()
        ]
        return [text.prompt + text.completion for text in rendered]

    return load(find_model(str(model_folder(folder))), seed=seed, texts=texts)


def with_tokens(frame: pl.DataFrame, loaded: LoadedModel, shift: float = 0.0) -> pl.DataFrame:
    """As if `loaded` had sampled each action: ids, and its log-probabilities moved by ±`shift` in turn."""
    template = ChatTemplate.of(loaded.tokenizer)
    eos = str(loaded.tokenizer.eos_token)
    prompts, completions, logps = [], [], []
    for row in frame.to_dicts():
        text = render_transition(template, row["state"], row["tools"], row["action"])
        prompt = loaded.tokenizer(text.prompt, add_special_tokens=False)["input_ids"]
        completion = loaded.tokenizer(end_of_turn(text.completion, eos), add_special_tokens=False)[
            "input_ids"
        ]
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.tensor([prompt + completion])).logits[0, :-1]
        picked = torch.log_softmax(logits, -1).gather(1, torch.tensor((prompt + completion)[1:])[:, None])[
            :, 0
        ]
        sampled = picked[len(prompt) - 1 :].tolist()
        prompts.append(prompt)
        completions.append(completion)
        logps.append([value + (shift if i % 2 else -shift) for i, value in enumerate(sampled)])
    return frame.with_columns(
        pl.Series("prompt_ids", prompts, dtype=pl.List(pl.Int32)),
        pl.Series("completion_ids", completions, dtype=pl.List(pl.Int32)),
        pl.Series("logprobs", logps, dtype=pl.List(pl.Float64)),
    )


def write(folder: Path, frame: pl.DataFrame) -> Path:
    """A finished dataset folder."""
    write_dataset(
        folder, frame, query={}, config_hash="", credit="identical", counts={}, splits={}, decoders={}
    )
    return folder
