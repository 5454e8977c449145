"""Tool definitions of conventions as OpenAI's `tools`."""

from __future__ import annotations

from spanloop_trainer.transform.flavours.values import Json, dump, first, load


def tools(raw: str) -> str | None:
    """Tool definitions of any shape as OpenAI's `tools`; None: they do not parse.

    Flat (`{"name", "parameters"}`: OpenTelemetry, Responses), nested (`{"function"}`), with `input_schema` (Anthropic), `inputSchema` (Vercel,
    MCP), a definition as JSON in a string, or `{"function_declarations"}` (Google).
    """
    try:
        value = load(raw)
        if isinstance(value, dict):
            value = [value]
        if not isinstance(value, list):
            return None
        found = [load(tool) if isinstance(tool, str) else tool for tool in value]
    except (ValueError, RecursionError):
        return None
    if not all(isinstance(tool, dict) for tool in found):
        return None
    flat = [
        one
        for tool in found
        for one in (first(tool, "function_declarations", "functionDeclarations") or [tool])
    ]
    return dump([_tool(tool) for tool in flat])


def _tool(tool: Json) -> Json:
    inner = tool.get("function")
    if isinstance(inner, dict):
        return {"type": "function", "function": inner}
    if isinstance(tool.get("toolSpec"), dict):  # Bedrock
        tool = tool["toolSpec"]
    if "name" not in tool:
        return tool  # of the provider: `{"type": "web_search"}`
    schema = first(tool, "parameters", "input_schema", "inputSchema", "parameters_json_schema")
    for inside in ("jsonSchema", "json"):
        if isinstance(schema, dict) and isinstance(schema.get(inside), dict):
            schema = schema[inside]
    fields = {
        "name": tool["name"],
        "description": tool.get("description"),
        "parameters": schema,
        "strict": tool.get("strict"),
    }
    return {
        "type": "function",
        "function": {name: value for name, value in fields.items() if value is not None},
    }
