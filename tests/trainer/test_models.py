"""Models from folders, tokenizers that round-trip, and one clear error for a folder that is no model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tests.trainer.algorithms.datasets import TEMPLATE, model_folder, tiny_model, transitions
from transformers import AutoModelForCausalLM, AutoTokenizer

from spanloop_trainer.errors import ModelError
from spanloop_trainer.models import find_model, load, save
from spanloop_trainer.tokenizer import fingerprint, template_tokens


def test_tokenizer_survives_the_disk(tmp_path: Path) -> None:
    loaded = tiny_model(tmp_path / "base", transitions(20))
    save(loaded, tmp_path / "out")
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert fingerprint(again) == fingerprint(loaded.tokenizer)
    assert again.chat_template == TEMPLATE
    assert again.eos_token == "<|im_end|>"
    assert again.pad_token == "<|pad|>"
    text = "<|im_start|>user\nsum of 12 and 7?  naïve 東京<|im_end|>\n"
    assert again.decode(again(text, add_special_tokens=False)["input_ids"]) == text


def test_fingerprint_tells_tokenizers_apart(tmp_path: Path) -> None:
    first = tiny_model(tmp_path / "a", transitions(20))
    shutil.rmtree(tmp_path / "a")
    other = transitions(20, seed=5)
    other = other.with_columns(other["state"].str.replace_all("sum", "the grand total of everything"))
    assert fingerprint(tiny_model(tmp_path / "a", other).tokenizer) != fingerprint(first.tokenizer)


def test_digits_newlines_and_marks_stand_alone(tmp_path: Path) -> None:
    tokenizer = tiny_model(tmp_path / "base", transitions(50)).tokenizer
    marks = set(template_tokens(TEMPLATE)) | {"<|pad|>"}
    # Each vocabulary entry in the byte alphabet of byte-level BPE, where Ċ is the newline.
    for token in set(tokenizer.get_vocab()) - marks:
        assert token == "Ċ" or "Ċ" not in token
        assert len(token) == 1 or not any(c.isdigit() for c in token)
        assert not any(mark in token for mark in marks)
    for mark in marks:
        assert len(tokenizer(f"a{mark}b", add_special_tokens=False)["input_ids"]) == 3
    call = tokenizer("<tool_call>{}</tool_call><|im_end|>", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(call, skip_special_tokens=True) == "<tool_call>{}</tool_call>"


def test_fresh_weights_follow_the_seed(tmp_path: Path) -> None:
    frame = transitions(8)
    first, same, other = (
        tiny_model(tmp_path / "m", frame, seed=seed).model.state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_saved_model_generates_until_its_end_of_turn(tmp_path: Path) -> None:
    loaded = tiny_model(tmp_path / "base", transitions(8))
    save(loaded, tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.config.eos_token_id == loaded.tokenizer.eos_token_id
    assert again.generation_config.eos_token_id == loaded.tokenizer.eos_token_id
    assert again.dtype == torch.float32


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"not a model folder: it has no config\.json"):
        find_model(str(tmp_path))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no folder"):
        find_model(str(tmp_path / "nothing"))


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(ModelError, match="is a file"):
        find_model(str(tmp_path / "x"))


def test_a_registry_reference_needs_a_store() -> None:
    with pytest.raises(ModelError, match="no store was given"):
        find_model("agents@3")


def test_a_configuration_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    with pytest.raises(ModelError, match="no model can be loaded"):
        load(find_model(str(tmp_path)), seed=0, texts=lambda _: [])


def test_broken_weights(tmp_path: Path) -> None:
    save(tiny_model(tmp_path / "base", transitions(8)), tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match="no model can be loaded"):
        load(find_model(str(tmp_path / "out")), seed=0)


def test_weights_without_tokenizer(tmp_path: Path) -> None:
    save(tiny_model(tmp_path / "base", transitions(8)), tmp_path / "out")
    (tmp_path / "out" / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="weights but no tokenizer"):
        load(find_model(str(tmp_path / "out")), seed=0)


def test_a_vocabulary_that_cannot_hold_the_bytes(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, vocab_size=200)
    with pytest.raises(ModelError, match="vocab_size 200 cannot hold 256 bytes"):
        load(find_model(str(folder)), seed=0, texts=lambda _: ["text"])


def test_qwen2_would_ignore_a_trained_tokenizer(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, model_type="qwen2", architectures=["Qwen2ForCausalLM"])
    with pytest.raises(ModelError, match="qwen2"):
        load(find_model(str(folder)), seed=0, texts=lambda _: ["text"])


def test_content_hash_follows_the_weights(tmp_path: Path) -> None:
    save(tiny_model(tmp_path / "base", transitions(8)), tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert find_model(str(tmp_path / "a")).content_hash() == find_model(str(tmp_path / "b")).content_hash()
    save(tiny_model(tmp_path / "base", transitions(8), seed=1), tmp_path / "b")
    assert find_model(str(tmp_path / "a")).content_hash() != find_model(str(tmp_path / "b")).content_hash()
