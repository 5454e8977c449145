"""Trains a small byte-level BPE tokenizer for a model that starts from a configuration alone."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator

import orjson
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from spanloop_trainer.errors import ModelError
from spanloop_trainer.rendering import ChatTemplate

# Marks that open and close a tool call in text (Hermes form). One token each, but not "special": decoding must
# keep them, since the server parses tool calls out of the decoded text.
_TOOL_MARKS = ("<tool_call>", "</tool_call>")
_SPECIAL = re.compile(r"<\|[A-Za-z0-9_]+\|>")
_PAD = "<|pad|>"
_BYTES = 256

# Never empty, covers digits, newlines, special tokens, spaces, JSON and characters outside ASCII.
_FINGERPRINT_TEXTS = (
    "What is 17 plus 250? It's 267.\n\n  Twice: 534",
    '<tool_call>{"name": "add", "arguments": {"a": 17, "b": 250}}</tool_call>',
    "<|im_start|>user\nnaïve café — 東京 🚀<|im_end|>\n",
    "\ttabs and    spaces\r\n<|pad|><|end|>",
)


def template_tokens(template: str) -> list[str]:
    """The marks of a chat template that become tokens of their own, in order of first appearance."""
    marks = list(dict.fromkeys(_SPECIAL.findall(template)))
    return marks + [mark for mark in _TOOL_MARKS if mark in template]


def end_of_turn_token(template: ChatTemplate) -> str:
    """The first `<|…|>` mark that follows an assistant message's content.

    Raises:
        ModelError: none follows it.
    """
    content = "zqxcontentxqz"
    text = template.render(
        [{"role": "user", "content": "question"}, {"role": "assistant", "content": content}],
        None,
        add_generation_prompt=False,
    )
    found = _SPECIAL.search(text, text.rfind(content) + len(content)) if content in text else None
    if found is None:
        raise ModelError(
            f"the chat template {template.name} writes no <|…|> mark after an assistant message.",
            "end assistant turns with a mark such as <|im_end|>, which becomes the end-of-turn token",
        )
    return found.group()


def train_tokenizer(texts: Iterable[str], template: ChatTemplate, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train byte-level BPE on rendered conversations.

    Digits are isolated one by one and newlines each for itself, so that numbers are read digit by digit and no
    token spans two lines. Special marks are cut out before merges are counted: no merge crosses one.

    Args:
        texts: rendered conversations, marks included.
        template: the chat template; its marks become tokens, and it is attached to the tokenizer.
        vocab_size: size of the vocabulary, marks and the 256 bytes included.

    Raises:
        ModelError: `vocab_size` is too small to hold the marks and the bytes.
    """
    eos = end_of_turn_token(template)
    marks = list(dict.fromkeys([_PAD, eos, *template_tokens(template.source)]))
    if vocab_size < len(marks) + _BYTES:
        raise ModelError(
            f"vocab_size {vocab_size} cannot hold {_BYTES} bytes and {len(marks)} marks of the chat template.",
            f"set vocab_size in config.json to at least {len(marks) + _BYTES}",
        )
    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n"), behavior="isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=marks,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator(_pieces(texts, marks), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=_unspecial(engine, _TOOL_MARKS),
        eos_token=eos,
        pad_token=_PAD,
        chat_template=template.source,
        clean_up_tokenization_spaces=False,
    )


def _pieces(texts: Iterable[str], marks: list[str]) -> Iterator[str]:
    cut = re.compile("|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True)))
    for text in texts:
        yield from (piece for piece in cut.split(text) if piece)


def _unspecial(engine: Tokenizer, tokens: tuple[str, ...]) -> Tokenizer:
    """The trainer marks all reserved tokens special; clear that for those that decoding has to keep."""
    document = orjson.loads(engine.to_str())
    for token in document["added_tokens"]:
        if token["content"] in tokens:
            token["special"] = False
    return Tokenizer.from_str(orjson.dumps(document).decode())


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash over the ids of fixed texts: equal for two loads of one tokenizer, on the server and in training."""
    ids = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in _FINGERPRINT_TEXTS]
    return hashlib.sha256(orjson.dumps([ids, len(tokenizer)])).hexdigest()[:16]
