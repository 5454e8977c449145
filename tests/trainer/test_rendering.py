"""Captured ids are used as they are; the rest is rendered with the chat template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.trainer.algorithms.datasets import TEMPLATE, tiny_model, transitions

from spanloop_trainer.errors import ModelError, TrainError
from spanloop_trainer.models import LoadedModel
from spanloop_trainer.rendering import (
    ChatTemplate,
    end_of_turn,
    prompt_ids,
    render_transition,
    transition_ids,
)

STRING_TEMPLATE = TEMPLATE.replace("['arguments'] | tojson", "['arguments']")
CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a":1, "b": 2}'}}
MESSAGES = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "1 + 2?"}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c", "content": "3"},
]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return tiny_model(tmp_path_factory.mktemp("model"), transitions(8))


def test_prompt_ids_spell_the_rendered_prompt(loaded: LoadedModel) -> None:
    assert loaded.tokenizer.decode(prompt_ids(loaded.tokenizer, MESSAGES, None)) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1 + 2?<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call><|im_end|>\n'
        "<|im_start|>tool\n3<|im_end|>\n<|im_start|>assistant\n"
    )


def test_arguments_are_not_quoted_twice() -> None:
    action = json.dumps({"role": "assistant", "content": None, "tool_calls": [CALL]})
    as_object = render_transition(ChatTemplate(TEMPLATE, "t", {}), "[]", None, action)
    as_string = render_transition(ChatTemplate(STRING_TEMPLATE, "t", {}), "[]", None, action)
    assert '"arguments": {"a": 1, "b": 2}}' in as_object.completion
    assert '"arguments": {"a":1, "b": 2}}' in as_string.completion  # the very characters that were sampled


def test_completion_ends_with_its_end_of_turn() -> None:
    assert end_of_turn("3<|im_end|>\n", "<|im_end|>") == "3<|im_end|>"
    assert end_of_turn("3", "<|im_end|>") == "3<|im_end|>"


def test_a_template_whose_prompt_does_not_begin_the_whole_is_named() -> None:
    broken = ChatTemplate(TEMPLATE.replace("assistant", "helper"), "models/broken", {})
    with pytest.raises(TrainError, match="models/broken renders a prompt that does not begin"):
        render_transition(broken, '[{"role": "user", "content": "x"}]', None, '{"content": "y"}')


def test_a_template_that_fails_is_named() -> None:
    failing = ChatTemplate("{{ raise_exception('no system role') }}", "models/failing", {})
    with pytest.raises(TrainError, match="models/failing fails on a conversation: no system role"):
        render_transition(failing, "[]", None, '{"content": "y"}')


def test_a_tokenizer_without_template(loaded: LoadedModel, tmp_path: Path) -> None:
    before = loaded.tokenizer.chat_template
    loaded.tokenizer.chat_template = None
    try:
        with pytest.raises(ModelError, match="no chat template"):
            prompt_ids(loaded.tokenizer, MESSAGES, None)
    finally:
        loaded.tokenizer.chat_template = before


def test_captured_ids_are_used_as_they_are(loaded: LoadedModel) -> None:
    rows = transitions(1).to_dicts()
    rows[0].update(prompt_ids=[9, 8], completion_ids=[7])
    captured, rendered = transition_ids(loaded.tokenizer, rows)
    assert (captured.prompt, captured.completion, captured.retokenized) == ([9, 8], [7], False)
    assert rendered.retokenized
    assert rendered.completion[-1] == loaded.tokenizer.eos_token_id
