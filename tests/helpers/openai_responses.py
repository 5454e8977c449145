"""The Responses API's shapes over the chat protocol's: for the stub server, whose scripts speak chat messages only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def as_chat(body: dict[str, Any], earlier: list[dict[str, Any]]) -> dict[str, Any]:
    """A Responses request as the chat request that a script understands; `earlier` are the messages of the answer it continues."""
    messages = list(earlier)
    if body.get("instructions"):
        messages.append({"role": "system", "content": body["instructions"]})
    given = body["input"]
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    for item in items:
        match item.get("type", "message"):
            case "message":
                messages.append({"role": item["role"], "content": _text(item["content"])})
            case "function_call":
                call = {
                    "id": item["call_id"],
                    "type": "function",
                    "function": {"name": item["name"], "arguments": item["arguments"]},
                }
                if messages and messages[-1].get("tool_calls"):
                    messages[-1]["tool_calls"].append(call)
                else:
                    messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
            case "function_call_output":
                messages.append(
                    {"role": "tool", "tool_call_id": item["call_id"], "content": _text(item["output"])}
                )
    tools = [
        {
            "type": "function",
            "function": {k: tool[k] for k in ("name", "description", "parameters") if k in tool},
        }
        for tool in body.get("tools") or []
        if tool["type"] == "function"
    ]
    return {"model": body["model"], "messages": messages, **({"tools": tools} if tools else {})}


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def response(body: dict[str, Any], message: dict[str, Any], number: int, model: str) -> dict[str, Any]:
    """The complete response object that says `message`."""
    output: list[dict[str, Any]] = []
    if message.get("content"):
        output.append(
            {
                "type": "message",
                "id": f"msg_{number}",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": message["content"], "annotations": []}],
            }
        )
    for place, call in enumerate(message.get("tool_calls") or []):
        output.append(
            {
                "type": "function_call",
                "id": f"fc_{number}_{place}",
                "call_id": call["id"],
                "name": call["function"]["name"],
                "arguments": call["function"]["arguments"],
                "status": "completed",
            }
        )
    return {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": model,
        "output": output,
        "instructions": body.get("instructions"),
        "previous_response_id": body.get("previous_response_id"),
        "parallel_tool_calls": True,
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "error": None,
        "incomplete_details": None,
        "metadata": {},
        "temperature": body.get("temperature"),
        "top_p": None,
        "usage": {
            "input_tokens": 3,
            "output_tokens": 6,
            "total_tokens": 9,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        },
    }


def events(complete: dict[str, Any], pieces: Any) -> Iterator[dict[str, Any]]:
    """The stream's events in the API's order; `pieces` cuts a text into deltas."""
    begun = {**complete, "status": "in_progress", "output": [], "usage": None}
    unnumbered: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
    ]
    for index, item in enumerate(complete["output"]):
        at = {"output_index": index, "item_id": item["id"]}
        empty = {**item, "status": "in_progress"}
        if item["type"] == "message":
            part = item["content"][0]
            inner = {**at, "content_index": 0}
            unnumbered += [
                _item("added", index, {**empty, "content": []}),
                {"type": "response.content_part.added", **inner, "part": {**part, "text": ""}},
                *(
                    {"type": "response.output_text.delta", **inner, "delta": piece, "logprobs": []}
                    for piece in pieces(part["text"])
                ),
                {"type": "response.output_text.done", **inner, "text": part["text"], "logprobs": []},
                {"type": "response.content_part.done", **inner, "part": part},
            ]
        else:
            unnumbered += [
                _item("added", index, {**empty, "arguments": ""}),
                *(
                    {"type": "response.function_call_arguments.delta", **at, "delta": piece}
                    for piece in pieces(item["arguments"])
                ),
                {
                    "type": "response.function_call_arguments.done",
                    **at,
                    "name": item["name"],
                    "arguments": item["arguments"],
                },
            ]
        unnumbered.append(_item("done", index, item))
    unnumbered.append({"type": "response.completed", "response": complete})
    for number, event in enumerate(unnumbered):
        yield {**event, "sequence_number": number}


def _item(what: str, index: int, item: dict[str, Any]) -> dict[str, Any]:
    return {"type": f"response.output_item.{what}", "output_index": index, "item": item}
