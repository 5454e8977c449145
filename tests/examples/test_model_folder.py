"""The example's model folder: its chat template renders what training and serving lean on."""

from __future__ import annotations

import json
from pathlib import Path

from spanloop_trainer.rendering import ChatTemplate, template_messages
from spanloop_trainer.tokenizer import end_of_turn_token, template_tokens

MODEL = Path(__file__).parents[2] / "examples" / "calculator" / "model"
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    ],
}
CONVERSATION = [
    {"role": "user", "content": "What is the sum of 1 and 2?"},
    CALL,
    {"role": "tool", "tool_call_id": "c1", "content": "3"},
    {"role": "assistant", "content": "3"},
]


def template() -> ChatTemplate:
    return ChatTemplate((MODEL / "chat_template.jinja").read_text(encoding="utf-8"), "calculator", {})


def test_a_conversation_renders_in_hermes_form() -> None:
    found = template()
    text = found.render(template_messages(found, CONVERSATION), None, add_generation_prompt=False)
    assert text == (
        "<|user|>What is the sum of 1 and 2?<|end|>"
        '<|assistant|><tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call><|end|>'
        "<|tool|>3<|end|><|assistant|>3<|end|>"
    )


def test_every_prompt_begins_the_whole() -> None:
    found = template()
    whole = found.render(template_messages(found, CONVERSATION), None, add_generation_prompt=False)
    for size in (1, 3):
        assert whole.startswith(found.prompt(template_messages(found, CONVERSATION[:size]), None))


def test_its_marks_are_found() -> None:
    found = template()
    assert end_of_turn_token(found) == "<|end|>"
    assert set(template_tokens(found.source)) >= {
        "<|user|>",
        "<|assistant|>",
        "<|tool|>",
        "<tool_call>",
        "</tool_call>",
    }


def test_the_configuration_has_less_than_half_a_million_parameters() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(MODEL)
    parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    assert json.loads((MODEL / "config.json").read_text())["num_hidden_layers"] == 2
    assert 300_000 < parameters < 500_000
