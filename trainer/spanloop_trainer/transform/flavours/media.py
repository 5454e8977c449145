"""Images, audio and files of conventions as OpenAI's content parts."""

from __future__ import annotations

from spanloop_trainer.transform.flavours.values import Json, first


def media_part(kind: str, part: Json) -> Json | None:
    """An image, audio or file as OpenAI's content part; only `type`: the recording left the content out; None: not known."""
    if kind in ("image_url", "input_audio", "file") and isinstance(part.get(kind), dict):
        return part
    if isinstance(part.get("source"), dict):
        part = {**part, **part["source"]}
        part.pop("type")
    mime = str(first(part, "mime_type", "media_type", "mediaType", "mimeType") or "")
    modality = str(part.get("modality") or "") or _modality(kind, mime)
    if modality not in ("image", "audio", "video", "file"):
        return None
    url, data = (
        first(part, "uri", "url", "file_uri", "fileUri"),
        first(part, "content", "data", "image", "binary_content"),
    )
    url = first(part, "image_url") if url is None else url
    if isinstance(data, str) and data.startswith(("http://", "https://", "data:")):
        url, data = data, None
    identity = first(part, "file_id", "fileId")
    if identity is not None:
        return {"type": "file", "file": {"file_id": str(identity)}}
    if data is not None and isinstance(data, str) and modality == "audio":
        return {
            "type": "input_audio",
            "input_audio": {"data": data, "format": mime.rpartition("/")[2] or "wav"},
        }
    if url is None and isinstance(data, str):
        url = f"data:{mime or 'application/octet-stream'};base64,{data}"
    if url is None:
        return {"type": "image_url" if modality == "image" else "file"}
    if modality == "image":
        return {"type": "image_url", "image_url": {"url": str(url)}}
    # OpenAI's form has no address of a file: its own field for the content holds it.
    return {"type": "file", "file": {"file_data": str(url)}}


def _modality(kind: str, mime: str) -> str:
    """From the name of a part, else from its media type."""
    for name in ("image", "audio", "video"):
        if kind in (name, f"input_{name}", f"{name}-url", f"{name}_url") or mime.partition("/")[0] == name:
            return name
    if kind in ("document", "document-url", "file", "input_file", "blob", "uri", "binary"):
        return "file"
    return ""
