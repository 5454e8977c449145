"""Messages to text by a chat template, and transitions to token ids; captured ids are used as they are.

Tool-call arguments: OpenAI's protocol carries them as a JSON string. A template that writes a string as it stands
gets that string, since it repeats the very tokens that the model sampled; one that would quote it a second time
(`| tojson`, as Qwen's and Hermes' do) gets the parsed object. Which of the two a template is, is found by rendering
a probe. Arguments that are no JSON object stay a string.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import orjson
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from spanloop_trainer.errors import ModelError, TrainError

Message = dict[str, Any]

# What a template may look at; other keys (refusal, annotations, audio, …) differ between SDKs and would make
# equal conversations render differently.
_MESSAGE_KEYS = ("role", "content", "tool_calls", "tool_call_id", "name")


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja chat template, ready to render.

    Attributes:
        source: the Jinja text.
        name: where it came from, for messages.
        special_tokens: what the template may refer to by name (`bos_token`, …).
    """

    source: str
    name: str
    special_tokens: Mapping[str, Any]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
        """The tokenizer's own template.

        Raises:
            ModelError: the tokenizer has none.
        """
        # Typed as text upstream, but several named templates come as a dict: "tool_use" knows tools.
        named: Any = tokenizer.chat_template
        source = named if isinstance(named, str) or not named else named.get("tool_use") or named["default"]
        if not source:
            raise ModelError(
                f"the tokenizer of {tokenizer.name_or_path} has no chat template.",
                "put a chat_template.jinja into the model's folder",
            )
        return cls(source, str(tokenizer.name_or_path), dict(tokenizer.special_tokens_map))

    def render(
        self, messages: Sequence[Message], tools: Sequence[Any] | None, *, add_generation_prompt: bool
    ) -> str:
        """Render a conversation as text.

        Raises:
            TrainError: the template itself fails on it.
        """
        try:
            # Annotated as a string upstream; it is (texts, masks of generated parts).
            rendered: Any = render_jinja_template(
                [list(messages)],
                tools=list(tools) if tools else None,
                chat_template=self.source,
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
            )
        except Exception as error:  # Jinja runs the template's own code: any exception may come out of it
            raise TrainError(
                f"the chat template of {self.name} fails on a conversation: {error}.",
                "compare the template with the messages (spanloop show prints an episode)",
            ) from error
        return str(rendered[0][0])

    @cached_property
    def wants_objects(self) -> bool:
        """Whether tool-call arguments must be objects, since the template would quote a JSON string again."""
        call = {"id": "c", "type": "function", "function": {"name": "probe", "arguments": '{"probe_key": 1}'}}
        messages: list[Message] = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "y", "tool_call_id": "c"},
        ]
        return '\\"probe_key' in self.render(messages, None, add_generation_prompt=False)

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> str:
        """The text that the model is asked to continue."""
        return self.render(messages, tools, add_generation_prompt=True)

    def completion(
        self, prompt: str, messages: Sequence[Message], tools: Sequence[Any] | None, action: Message
    ) -> str:
        """The text of the assistant message `action` as it continues `prompt`.

        Raises:
            TrainError: the rendered prompt is not a prefix of the rendered whole.
        """
        full = self.render([*messages, action], tools, add_generation_prompt=False)
        if not full.startswith(prompt):
            raise TrainError(
                f"the chat template of {self.name} renders a prompt that does not begin the rendered conversation.",
                "use a template whose generation prompt opens the assistant turn exactly as a finished turn does",
            )
        return full[len(prompt) :]


def template_messages(template: ChatTemplate, messages: Sequence[Message]) -> list[Message]:
    """Messages in OpenAI chat form to the form that `template` expects (see the module's text)."""
    return [_template_message(template, message) for message in messages]


def _template_message(template: ChatTemplate, message: Message) -> Message:
    result = {key: message[key] for key in _MESSAGE_KEYS if message.get(key) is not None}
    if result["role"] == "developer":  # OpenAI's newer name; open models' templates know `system` only
        result["role"] = "system"
    result.setdefault("content", "")
    if isinstance(result["content"], list):  # content parts: templates of text models know plain strings only
        result["content"] = "".join(
            part.get("text", "") for part in result["content"] if part.get("type") == "text"
        )
    calls = result.get("tool_calls")
    if calls and template.wants_objects:
        result["tool_calls"] = [{**call, "function": _with_object(call["function"])} for call in calls]
    return result


def _with_object(function: Message) -> Message:
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return function
    try:
        parsed = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return function
    return {**function, "arguments": parsed} if isinstance(parsed, dict) else function


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Sequence[Any] | None
) -> list[int]:
    """Token ids of the prompt for OpenAI-form `messages` and `tools`: what the policy server samples after."""
    template = ChatTemplate.of(tokenizer)
    text = template.prompt(template_messages(template, messages), tools)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@dataclass(frozen=True)
class RenderedText:
    """One transition as text: `completion` continues `prompt`, end-of-turn token and what follows it included."""

    prompt: str
    completion: str


def render_transition(template: ChatTemplate, state: str, tools: str | None, action: str) -> RenderedText:
    """Render the JSON columns `state`, `tools` and `action` of one transition.

    Raises:
        TrainError: the template fails, or its prompt does not begin the whole.
    """
    messages = template_messages(template, orjson.loads(state))
    schemas = orjson.loads(tools) if tools else None
    message = _template_message(template, {"role": "assistant", **orjson.loads(action)})
    prompt = template.prompt(messages, schemas)
    return RenderedText(prompt, template.completion(prompt, messages, schemas, message))


def end_of_turn(completion: str, eos_token: str) -> str:
    """`completion` up to and including its last end-of-turn token; templates add a newline after it.

    A template that leaves the end to the sampler gets the token added: without it a model never learns to stop.
    """
    head, found, _ = completion.rpartition(eos_token)
    return head + found if found else completion + eos_token


@dataclass(frozen=True)
class TokenIds:
    """One transition as tokens, and whether they were rendered here rather than captured when sampled."""

    prompt: list[int]
    completion: list[int]
    retokenized: bool


def transition_ids(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    texts: Mapping[int, RenderedText] | None = None,
) -> list[TokenIds]:
    """Token ids of transitions, in order.

    Args:
        rows: columns `state`, `tools`, `action`, `prompt_ids`, `completion_ids`.
        texts: renderings that exist already, by row number (a tokenizer was just trained on them).

    Raises:
        TrainError, ModelError: as `render_transition` and `ChatTemplate.of`.
    """
    missing = [i for i, row in enumerate(rows) if row["prompt_ids"] is None or row["completion_ids"] is None]
    rendered: dict[int, TokenIds] = {}
    if missing:
        template = ChatTemplate.of(tokenizer)
        known = texts or {}
        wanted = [
            known.get(i) or render_transition(template, rows[i]["state"], rows[i]["tools"], rows[i]["action"])
            for i in missing
        ]
        eos = str(tokenizer.eos_token)
        prompts = tokenizer([text.prompt for text in wanted], add_special_tokens=False)["input_ids"]
        completions = tokenizer(
            [end_of_turn(text.completion, eos) for text in wanted], add_special_tokens=False
        )["input_ids"]
        rendered = {
            i: TokenIds(prompt, completion, retokenized=True)
            for i, prompt, completion in zip(missing, prompts, completions, strict=True)
        }
    return [
        rendered.get(i) or TokenIds(list(row["prompt_ids"]), list(row["completion_ids"]), retokenized=False)
        for i, row in enumerate(rows)
    ]
