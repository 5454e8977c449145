"""An episode as a text that a judge reads."""

from __future__ import annotations

import re

from spanloop_trainer.transform.rewards.episode import Episode, Message, text_of

_HEADING = re.compile(r"^###", re.MULTILINE)


def transcript(episode: Episode, max_chars: int) -> str:
    """The conversation with its tool calls; of one that is too long the middle is left out. Empty: there is nothing to read."""
    blocks = [_block(message) for message in episode.messages]
    if not blocks:
        return ""
    last = episode.calls[-1]
    if last.status != "ok":
        blocks.append(
            f"[the run ended here: its last model call was {last.status} {last.error_type or ''}".rstrip()
            + "]"
        )
    return shortened("\n\n".join(blocks), max_chars)


def shortened(text: str, max_chars: int) -> str:
    """A third of the beginning and two thirds of the end: the task, and how it came out."""
    if len(text) <= max_chars:
        return text
    note = "\n\n[… {} characters left out …]\n\n"
    room = max_chars - len(note.format(len(text)))
    return text[: room // 3] + note.format(len(text) - room) + text[len(text) - (room - room // 3) :]


def _block(message: Message) -> str:
    lines = [f"### {message.get('role', 'unknown')}"]
    if text := text_of(message):
        # A text that looks like another turn, as of a user who is grateful, is still this one's; Markdown reads it as before.
        lines.append(_HEADING.sub(r"\\###", text))
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        lines.append(f"calls {function.get('name')}({function.get('arguments', '')})")
    return "\n".join(lines)
