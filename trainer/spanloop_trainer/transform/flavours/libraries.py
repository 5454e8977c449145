"""Messages and responses as libraries write their own classes into `input.value` and `output.value`: OpenAI, Anthropic, LangChain, LlamaIndex,
LiteLLM, openai-agents.
"""

from __future__ import annotations

from typing import Any

from spanloop_trainer.transform.flavours import Message, chat
from spanloop_trainer.transform.flavours.chat import Json

_LANGCHAIN = {"System": "system", "Human": "user", "AI": "assistant", "Tool": "tool"}


def joined(pieces: list[Json]) -> Json:
    """Several pieces of one message as that message; texts that follow each other are joined by a line break."""
    if len(pieces) == 1:
        return pieces[0]
    whole: Json = {}
    parts: list[Json] = []
    calls: list[Json] = []
    for piece in pieces:
        whole.update({name: value for name, value in piece.items() if name not in ("content", "tool_calls")})
        # A message of a role alone was an empty text.
        content = piece.get("content") or ([""] if piece.keys() == {"role"} else [])
        for part in content if isinstance(content, list) else [content]:
            part = {"type": "text", "text": part} if isinstance(part, str) else part
            if parts and part.get("type") == parts[-1].get("type") == "text":
                parts[-1] = {"type": "text", "text": f"{parts[-1].get('text', '')}\n{part.get('text', '')}"}
            else:
                parts.append(part)
        calls += piece.get("tool_calls") or []
    return {**whole, "content": parts, "tool_calls": calls}


def langchain(raw: str) -> list[Message] | None:
    """A message as LangChain writes its classes: `{"lc", "id": […, "HumanMessage"], "kwargs"}`."""
    try:
        value = chat.load(raw)
        fields, kind = value["kwargs"], value["id"][-1].removesuffix("Chunk").removesuffix("Message")
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    role = _LANGCHAIN.get(kind) or fields.get("role") or fields.get("type")
    said = {name: fields[name] for name in ("content", "tool_call_id") if name in fields}
    if role == "user":  # the names of others are LangChain's own
        said["name"] = fields.get("name")
    return chat.message({**said, **_beside(fields), "role": role}, by_value=True)


def _beside(fields: Json) -> Json:
    """What LangChain's message of an assistant has beside its content."""
    more = fields.get("additional_kwargs") or {}
    return {
        "tool_calls": fields.get("tool_calls") or more.get("tool_calls"),
        "refusal": more.get("refusal"),
        "reasoning_content": more.get("reasoning_content"),
    }


def response(value: Any, choice: int) -> Json:
    """A choice in the response of the library that was called; another shape raises what a reader of JSON raises.

    Raises:
        KeyError, IndexError, TypeError, ValueError, AttributeError: it has another shape.
    """
    if isinstance(value, list) and value and isinstance(value[0], dict) and "function" in value[0]:  # CrewAI
        return {"tool_calls": value}
    if isinstance(value, list):
        value = value[choice]
    if isinstance(value, str):
        return {"content": value}
    if isinstance(value.get("raw"), dict) and value["raw"].get("choices"):
        value = value["raw"]
    if value.get("choices"):  # OpenAI
        of_choice = value["choices"][choice]
        message = of_choice.get("message") or {"content": of_choice["text"]}
        more = message.get("provider_specific_fields") or {}  # LiteLLM
        refusal = message.get("refusal") or more.get("refusal")
        return {**message, "refusal": refusal, "finish_reason": of_choice.get("finish_reason")}
    if value.get("generations"):  # LangChain
        return _generation(value["generations"][0][choice])
    if isinstance(value.get("output"), list):  # Responses
        return of_items(value["output"])
    if isinstance(value.get("message"), dict):  # LlamaIndex, Ollama
        return _block_message(value["message"])
    if isinstance(value.get("content"), dict) and "parts" in value["content"]:  # Google
        return {**value["content"], "finish_reason": value.get("finish_reason")}
    if "content" in value or value.get("tool_calls"):  # Anthropic, smolagents
        return {**value, "finish_reason": value.get("finish_reason") or value.get("stop_reason")}
    return {"content": value["text"]}


def _generation(generation: Json) -> Json:
    info = generation.get("generation_info") or generation.get("generationInfo") or {}
    finish = info.get("finish_reason")
    message = (generation.get("message") or {}).get("kwargs")
    if message is None:
        return {"content": generation["text"], "finish_reason": finish}
    told = message.get("response_metadata") or {}
    finish = finish or told.get("finish_reason") or told.get("stop_reason")
    return {"content": message.get("content"), **_beside(message), "finish_reason": finish}


def of_items(items: list[Json]) -> Json:
    """Items of the Responses API that are one message of the assistant."""
    pieces: list[Json] = []
    for item in items:
        if item.get("type") == "message":
            pieces.append({"content": item.get("content")})
        elif item.get("type") in ("function_call", "custom_tool_call"):
            pieces.append({"tool_calls": [{**item, "arguments": item.get("arguments", item.get("input"))}]})
        else:
            pieces.append({"content": [item]})
    return {**joined(pieces), "role": "assistant"}


def _block_message(message: Json) -> Json:
    if "blocks" not in message:
        return message
    calls = [
        {"id": block["tool_call_id"], "name": block["tool_name"], "arguments": block["tool_kwargs"]}
        for block in message["blocks"]
        if "tool_kwargs" in block
    ]
    calls = calls or (message.get("additional_kwargs") or {}).get("tool_calls") or []
    return {
        "role": message.get("role"),
        "content": [block["text"] for block in message["blocks"] if "text" in block],
        "tool_calls": calls,
    }
