"""What a network user may say: one statement, of a known kind, that reaches neither files nor other servers.

The first wall is the engine's: network handles run in roles without the SOURCES grant (spanloop_store.engine). This
module is the second, and the only one for what the engine checks no grant for: the scalar function `file`, `INTO
OUTFILE`, `FROM INFILE`, `SET ROLE`, several statements in one text. It reads the text as the engine's lexer does, and
*sends on what it understood*: comments are taken out, and any byte outside of quotes on which two lexers might differ
is refused. So a text that this module reads differently from the engine never reaches the engine.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from spanloop_collector.endpoint.errors import ACCESS_DENIED, READONLY, SYNTAX_ERROR, EndpointError

# Bytes are read as latin-1, one character a byte: an INSERT's binary data follows its statement in the same body.
_TOKENS = re.compile(
    r"""
      (?P<space>[ \t\r\n\f\v]+)
    | (?P<comment>--[^\n]*|/\*.*?\*/)
    | (?P<string>'(?:[^'\\]|\\.|'')*')
    | (?P<quoted>`(?:[^`\\]|\\.|``)*`|"(?:[^"\\]|\\.|"")*")
    | (?P<number>\.?[0-9][0-9A-Za-z_]*(?:\.[0-9A-Za-z_]*)?(?:(?<=[eEpP])[+-][0-9]+)?)
    | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<end>;)
    | (?P<sign>[-+*/%=<>!(),.\[\]{}?:|@^&~])
    """,
    re.VERBOSE | re.DOTALL,
)

_READS: Final = frozenset({"SELECT", "WITH", "FROM", "SHOW", "DESCRIBE", "DESC", "EXPLAIN", "EXISTS", "("})
_SESSION: Final = frozenset({"SET", "USE"})
_WRITES: Final = frozenset(
    {
        "INSERT",
        "CREATE",
        "ALTER",
        "DROP",
        "TRUNCATE",
        "OPTIMIZE",
        "DELETE",
        "UPDATE",
        "RENAME",
        "EXCHANGE",
        "CHECK",
    }
)
# Closed wherever they stand unquoted. The first four have no grant; PARALLEL WITH and EXECUTE AS carry a second
# statement; a DEFINER view runs with the owner's rights, not with its caller's.
_CLOSED_WORDS: Final = frozenset(
    {"OUTFILE", "INFILE", "PARALLEL", "IMPERSONATE", "DEFINER", "MATERIALIZED", "FREEZE", "UNFREEZE", "FETCH"}
)
# Functions with side effects that no grant closes. As names they are closed in every place, called or not:
# `* APPLY(file)` and `arrayMap(file, …)` name a function without calling it.
_CLOSED_NAMES: Final = frozenset({"file", "catboostevaluate", "executable", "executablepool", "python"})
# Calls (table functions, dictionary sources, disks) that reach out of the store; the grants close most of them too.
_OPEN_TABLE_FUNCTIONS: Final = frozenset(
    {
        "format",
        "fuzzjson",
        "fuzzquery",
        "generate_series",
        "generaterandom",
        "generateseries",
        "input",
        "loop",
        "merge",
        "mergetreeanalyzeindexes",
        "mergetreecodecblockcounts",
        "mergetreeindex",
        "mergetreeprojection",
        "mergetreetextindex",
        "null",
        "numbers",
        "numbers_mt",
        "primes",
        "sqlstandardvalues",
        "values",
        "view",
        "viewexplain",
        "viewifpermitted",
        "zeros",
        "zeros_mt",
    }
)
_CLOSED_CALLS: Final = frozenset({"disk", "http", "https", "source", "s3", "eval"})
_CLOSED_CALL_PREFIXES: Final = ("ai", "system_", "llm")
# Settings that name files, or that would undo a limit.
_CLOSED_SETTINGS: Final = (
    "format_schema",
    "format_template",
    "readonly",
    "allow_ddl",
    "role",
    "disk",
    "storage_policy",
    # What one query may take.
    "max_memory_usage",
    "max_untracked_memory",
    "memory_overcommit",
    "memory_usage_overcommit",
)
_ENGINES: Final = frozenset(
    {
        "atomic",
        "memory",
        "log",
        "tinylog",
        "stripelog",
        "null",
        "join",
        "set",
        "view",
        "mergetree",
        "replacingmergetree",
        "summingmergetree",
        "aggregatingmergetree",
        "collapsingmergetree",
        "versionedcollapsingmergetree",
    }
)


@dataclass(frozen=True)
class Statement:
    """One statement that may run.

    Args:
        text: the SQL without comments and without a final `;`; of an INSERT with data, without its FORMAT clause.
        kind: its first word, in capitals.
        format: what its FORMAT clause names; empty: it has none.
        body_start: of an INSERT with data, where the data begins in the text that was given; None: it has none.
        reads: whether it answers with rows.
        checked: table DDL without a query in it, whose every name and engine was checked here. It may run with the
            owner's rights, and has to: in the embedded `default` database a role without READ ON FILE cannot even ask
            whether a table is there.
    """

    text: str
    kind: str
    format: str
    body_start: int | None
    reads: bool
    checked: bool


@dataclass(frozen=True)
class _Token:
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


def read_statement(text: str, *, writable: bool, table_functions: frozenset[str]) -> Statement:
    """Reads one statement and refuses what network users may not say.

    Args:
        text: the query, its bytes read as latin-1.
        writable: whether the user may change the store.
        table_functions: the engine's own list, in lower case; what is not known to be harmless is closed.

    Raises:
        EndpointError: a statement that is closed, or text that cannot be read with certainty.
    """
    tokens, body_start = _tokens(text)
    if not tokens:
        raise EndpointError(SYNTAX_ERROR, "Empty query")
    kind = tokens[0].text.upper()
    _check_kind(kind, tokens, writable)
    _check_tokens(tokens, table_functions)
    insert_data = kind == "INSERT" and body_start is not None
    if insert_data:
        clean, form = tokens[:-2], tokens[-1].text
    else:
        clean, form = tokens, _format_clause(tokens)
    return Statement(
        text=_join(text, clean),
        kind=kind,
        format=form,
        body_start=body_start,
        reads=kind in _READS,
        checked=_is_checked(kind, tokens),
    )


def without_format(statement: str) -> str:
    """A SELECT without its FORMAT clause, to run it again in another format."""
    tokens, _ = _tokens(statement)
    if len(tokens) > 2 and tokens[-2].name == "format" and tokens[-1].kind == "word":
        tokens = tokens[:-2]
    return _join(statement, tokens)


def check_setting(name: str) -> None:
    """Refuses a setting, given as a parameter, that names files or would undo a limit.

    Raises:
        EndpointError: it is closed, or its name is none.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise EndpointError(SYNTAX_ERROR, f"{name!r} is no setting's name")
    if name.lower().startswith(_CLOSED_SETTINGS):
        raise EndpointError(READONLY, f"Setting {name} is closed to network users")


def _tokens(text: str) -> tuple[list[_Token], int | None]:
    """The statement's tokens, and where an INSERT's data begins."""
    tokens: list[_Token] = []
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
        token = _Token(kind, match[0], position, match.end())
        position = match.end()
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
            if _before(tokens, "SELECT"):
                continue
            return tokens, _data_start(text, position)
    return tokens, None


def _before(tokens: Sequence[_Token], word: str) -> bool:
    return any(token.kind == "word" and token.text.upper() == word for token in tokens[1:])


def _data_start(text: str, position: int) -> int:
    """Data begins after the format's name, blanks, and at most one line end."""
    while position < len(text) and text[position] in " \t":
        position += 1
    if text.startswith("\r\n", position):
        return position + 2
    return position + 1 if position < len(text) and text[position] == "\n" else position


def _join(text: str, tokens: Sequence[_Token]) -> str:
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


def _format_clause(tokens: Sequence[_Token]) -> str:
    for index in range(len(tokens) - 1, 1, -1):
        if (
            tokens[index - 1].kind == "word"
            and tokens[index - 1].name == "format"
            and tokens[index].kind == "word"
        ):
            return tokens[index].text
    return ""


def _check_kind(kind: str, tokens: Sequence[_Token], writable: bool) -> None:
    if kind not in _READS | _SESSION | _WRITES:
        raise EndpointError(ACCESS_DENIED, f"{kind} statements are closed to network users")
    if kind in _WRITES and not writable:
        raise EndpointError(READONLY, f"Cannot execute {kind} in readonly mode: this user only reads")
    if kind == "SET" and (len(tokens) < 4 or tokens[2].text != "="):
        raise EndpointError(ACCESS_DENIED, "only SET name = value is open to network users")
    if kind == "ALTER" and any(token.name == "attach" for token in tokens):
        raise EndpointError(ACCESS_DENIED, "ATTACH is closed to network users")


def _is_checked(kind: str, tokens: Sequence[_Token]) -> bool:
    words = [token.text.upper() for token in tokens if token.kind == "word"]
    if kind in ("EXISTS", "DROP", "TRUNCATE"):
        return len(words) > 1 and words[1] in ("TABLE", "VIEW") and "SELECT" not in words
    if kind != "CREATE" or len(words) < 2 or words[1] != "TABLE":
        return False
    engines = [
        tokens[index + 2].name
        for index, token in enumerate(tokens[:-2])
        if token.kind == "word" and token.name == "engine" and tokens[index + 1].text == "="
    ]
    return len(engines) == 1 and engines[0] in _ENGINES and not {"SELECT", "AS", "FROM", "CLONE"} & set(words)


def _check_tokens(tokens: Sequence[_Token], table_functions: frozenset[str]) -> None:
    for index, token in enumerate(tokens):
        name = token.name
        if not name:
            continue
        following = tokens[index + 1].text if index + 1 < len(tokens) else ""
        if token.kind == "word" and name.upper() in _CLOSED_WORDS:
            raise EndpointError(ACCESS_DENIED, f"{token.text.upper()} is closed to network users")
        if token.kind == "quoted" and "\\" in token.text:
            # An escape would spell a closed name in another way; no name of ours needs one.
            raise EndpointError(
                ACCESS_DENIED, f"the name {token.text} has an escape, which is closed to network users"
            )
        if name in _CLOSED_NAMES or (following == "(" and _closed_call(name, table_functions)):
            raise EndpointError(
                ACCESS_DENIED, f"{token.text} reaches outside of the store: closed to network users"
            )
        if following == "=" and name.startswith(_CLOSED_SETTINGS):
            raise EndpointError(READONLY, f"Setting {token.text} is closed to network users")
        if token.kind == "word" and name == "engine":
            _check_engine(tokens[index + 1 : index + 3])


def _closed_call(name: str, table_functions: frozenset[str]) -> bool:
    if name in _OPEN_TABLE_FUNCTIONS:
        return False
    return name in table_functions or name in _CLOSED_CALLS or name.startswith(_CLOSED_CALL_PREFIXES)


def _check_engine(following: Sequence[_Token]) -> None:
    names = [token for token in following if token.text != "="][:1]
    # `SELECT engine FROM system.tables` has the word too: only a name of an engine that is closed matters there.
    if following and following[0].text == "=" and (not names or names[0].kind == "string"):
        return
    if following and following[0].text == "=" and names[0].name not in _ENGINES:
        raise EndpointError(ACCESS_DENIED, f"engine {names[0].text} is closed to network users")
