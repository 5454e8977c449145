"""A statement's text as tokens, and as text again: read as the engine's lexer does, and refused where two lexers might differ."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from spanloop_collector.endpoint.errors import SYNTAX_ERROR, EndpointError

# Bytes are read as latin-1, one character a byte: an INSERT's binary data follows its statement in the same body.
_TOKENS = re.compile(
    r"""
      (?P<space>[ \t\r\n\f\v]+)
    | (?P<comment>--[^\n]*|/\*.*?\*/)
    | (?P<string>'(?:[^'\\]|\\.|'')*')
    | (?P<quoted>`(?:[^`\\]|\\.|``)*`|"(?:[^"\\]|\\.|"")*")
    | (?P<number>[0-9][0-9A-Za-z_]*(?:(?<=[eEpP])[+-][0-9]+)?)
    | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<end>;)
    | (?P<sign>[-+*/%=<>!(),.\[\]{}?:|@^&~])
    """,
    re.VERBOSE | re.DOTALL,
)

# As the engine's max_query_size; a token takes a hundred bytes here. A writer's INSERT may carry its rows in its text.
MOST_CHARACTERS, MOST_WRITTEN = 1 << 18, 1 << 22


@dataclass(frozen=True, slots=True)
class Token:
    kind: str
    text: str
    start: int
    end: int

    @property
    def name(self) -> str:
        """What an identifier names, in lower case; empty for anything else."""
        if self.kind == "word":
            return self.text.lower()
        if self.kind == "quoted":
            return self.text[1:-1].lower()
        return ""


def statement_of(text: str) -> str:
    """The statement of a text that may hold an INSERT's data behind it, whether it may run or not; at most its beginning."""
    try:
        tokens, _ = tokens_of(text, MOST_CHARACTERS)
    except EndpointError:
        # It will be refused for this. Only what is sure to be no data is told of it.
        match = _TOKENS.match(text.lstrip())
        return match[0] if match is not None and match.lastgroup == "word" else ""
    return join(text, tokens)


def without_format(statement: str) -> str:
    """A SELECT without its FORMAT clause, to run it again in another format."""
    tokens, _ = tokens_of(statement, len(statement))
    if len(tokens) > 2 and tokens[-2].name == "format" and tokens[-1].kind == "word":
        tokens = tokens[:-2]
    return join(statement, tokens)


def tokens_of(text: str, most: int, most_inserted: int = 0) -> tuple[list[Token], int | None]:
    """The statement's tokens, in at most so many characters (of an INSERT: or so many), and where an INSERT's data begins."""
    tokens: list[Token] = []
    position = 0
    depth = 0
    while position < len(text):
        match = _TOKENS.match(text, position)
        if match is None:
            raise EndpointError(
                SYNTAX_ERROR,
                f"the endpoint cannot read the query at position {position} ({text[position : position + 20]!r}):"
                " outside of quotes only plain ASCII SQL is taken, without heredocs and # comments",
            )
        kind = match.lastgroup or ""
        token = Token(kind, match[0], position, match.end())
        position = match.end()
        if position > most and (position > most_inserted or not tokens or tokens[0].text.upper() != "INSERT"):
            raise EndpointError(
                SYNTAX_ERROR,
                f"Max query size exceeded: a statement is at most {most} characters long here;"
                " send rows as data (INSERT INTO t FORMAT CSV), and long lists as parameters",
            )
        if kind in ("space", "comment"):
            continue
        if kind == "end":
            if text[position:].strip(" \t\r\n;"):
                raise EndpointError(SYNTAX_ERROR, "Multi-statements are not allowed")
            break
        depth += {"(": 1, ")": -1}.get(token.text, 0)
        tokens.append(token)
        if tokens[0].text.upper() != "INSERT" or depth:
            continue
        if (
            len(tokens) > 2
            and tokens[-2].kind == "word"
            and tokens[-2].text.upper() == "FORMAT"
            and kind == "word"
        ):
            # Rows in Values are expressions: they are read as what they are.
            if _before(tokens, "SELECT") or token.text.upper() == "VALUES":
                continue
            return tokens, _data_start(text, position)
    return tokens, None


def _before(tokens: Sequence[Token], word: str) -> bool:
    return any(token.kind == "word" and token.text.upper() == word for token in tokens[1:])


def _data_start(text: str, position: int) -> int:
    """Data begins after the format's name, blanks, and at most one line end."""
    while position < len(text) and text[position] in " \t":
        position += 1
    if text.startswith("\r\n", position):
        return position + 2
    return position + 1 if position < len(text) and text[position] == "\n" else position


def join(text: str, tokens: Sequence[Token]) -> str:
    """The statement's text with every gap that held a comment made one blank."""
    pieces: list[str] = []
    previous = None
    for token in tokens:
        if previous is not None:
            gap = text[previous.end : token.start]
            pieces.append(gap if not gap.strip(" \t\r\n\f\v") else " ")
        pieces.append(token.text)
        previous = token
    return "".join(pieces)


def format_clause(tokens: Sequence[Token]) -> str:
    """What `FORMAT` names at the end of a query; a column may have that name too (`ORDER BY format DESC`)."""
    for index in range(len(tokens) - 1, 1, -1):
        word, name = tokens[index - 1], tokens[index]
        following = tokens[index + 1].text.upper() if index + 1 < len(tokens) else ""
        if word.kind == name.kind == "word" and word.name == "format" and following in ("", "SETTINGS"):
            return "" if name.name in ("asc", "desc") else name.text
    return ""
