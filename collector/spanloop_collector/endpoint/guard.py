"""What a network user may say: one statement, of a known kind, that reaches neither files nor other servers.

The first wall is the engine's: network handles run in roles without the SOURCES grant (spanloop_store.engine). This
module is the second, and the only one for what the engine checks no grant for: the scalar function `file`, `INTO
OUTFILE`, `FROM INFILE`, `SET ROLE`, several statements in one text. It reads the text as the engine's lexer does, and
*sends on what it understood*: comments are taken out, and any byte outside of quotes on which two lexers might differ
is refused. So a text that this module reads differently from the engine never reaches the engine. SQL that comes as a
*value* (a structure, a filter in a setting, an identifier in a parameter, data in the format Values) would pass by
here unread, so whatever takes such a value is closed, or read like the rest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from spanloop_collector.endpoint import closed
from spanloop_collector.endpoint.errors import ACCESS_DENIED, READONLY, SYNTAX_ERROR, EndpointError
from spanloop_collector.endpoint.lexer import (
    MOST_CHARACTERS,
    MOST_WRITTEN,
    Token,
    format_clause,
    join,
    tokens_of,
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
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_]+")


@dataclass(frozen=True)
class Statement:
    """One statement that may run.

    Args:
        text: the SQL without comments and without a final `;`; of an INSERT with data, without its FORMAT clause.
        kind: its first word, in capitals.
        format: what its FORMAT clause names; empty: it has none.
        body_start: of an INSERT with data, where the data begins in the text that was given; None: it has none.
        reads: whether it answers with rows.
        checked: a CREATE TABLE without a query in it, whose name and engine were checked here. It may run with the
            owner's rights, and has to: in the embedded `default` database a name that is no table is looked for as
            a file, which a role without READ ON FILE may not.
        if_exists: a DROP or TRUNCATE that is content where its one table is not there.
    """

    text: str
    kind: str
    format: str
    body_start: int | None
    reads: bool
    checked: bool
    if_exists: bool


def read_statement(
    text: str, *, writable: bool, table_functions: frozenset[str], parameters: Mapping[str, str]
) -> Statement:
    """Reads one statement and refuses what network users may not say.

    Args:
        text: the query, its bytes read as latin-1.
        writable: whether the user may change the store.
        table_functions: the engine's own list, in lower case; what is not known to be harmless is closed.
        parameters: the values of its `{name:Type}`.

    Raises:
        EndpointError: a statement that is closed, or text that cannot be read with certainty.
    """
    tokens, body_start = tokens_of(text, MOST_CHARACTERS, MOST_WRITTEN if writable else 0)
    if not tokens:
        raise EndpointError(SYNTAX_ERROR, "Empty query")
    kind = tokens[0].text.upper()
    _check_kind(kind, tokens, writable)
    _check_lasting(kind, tokens)
    _check_tokens(tokens, table_functions)
    _check_identifiers(tokens, parameters)
    if kind == "EXISTS" and (lookup := _lookup(tokens)):
        text, kind = lookup, "SELECT"
        tokens, _ = tokens_of(text, len(text))
    if kind == "INSERT" and body_start is not None:
        clean, form = tokens[:-2], tokens[-1].text
    else:
        clean, form = tokens, format_clause(tokens)
    words = [token.text.upper() for token in tokens if token.kind == "word"]
    return Statement(
        text=join(text, clean),
        kind=kind,
        format=form,
        body_start=body_start,
        reads=kind in _READS,
        checked=kind == "CREATE" and _is_checked(words, tokens),
        if_exists=kind in ("DROP", "TRUNCATE")
        and words[2:4] == ["IF", "EXISTS"]
        and all(token.text != "," for token in tokens),
    )


def _check_kind(kind: str, tokens: Sequence[Token], writable: bool) -> None:
    if kind not in _READS | _SESSION | _WRITES:
        raise EndpointError(ACCESS_DENIED, f"{kind} statements are closed to network users")
    if kind in _WRITES and not writable:
        raise EndpointError(READONLY, f"Cannot execute {kind} in readonly mode: this user only reads")
    if kind == "SET" and (len(tokens) < 4 or tokens[2].text != "="):
        raise EndpointError(ACCESS_DENIED, "only SET name = value is open to network users")
    if kind == "ALTER" and any(token.name == "attach" for token in tokens):
        raise EndpointError(ACCESS_DENIED, "ATTACH is closed to network users")


def _check_lasting(kind: str, tokens: Sequence[Token]) -> None:
    """What tells who did what, and what must not come back, can only grow. It may be read in a condition."""
    if kind not in _WRITES - {"INSERT"}:
        return
    if kind == "TRUNCATE" and len(tokens) > 1 and tokens[1].name in ("all", "database", "tables"):
        raise EndpointError(
            ACCESS_DENIED, "tables are emptied one by one by network users: TRUNCATE TABLE name"
        )
    depth = 0
    for index, token in enumerate(tokens):
        depth += {"(": 1, ")": -1}.get(token.text, 0)
        if token.name == "identifier" and index and tokens[index - 1].text == ":":
            raise EndpointError(
                ACCESS_DENIED,
                f"what {kind} changes is named in its text, not in a parameter, by network users",
            )
        if depth == 0 and token.name in closed.LASTING:
            raise EndpointError(ACCESS_DENIED, f"rows of {token.text} are never changed by network users")


def _lookup(tokens: Sequence[Token]) -> str:
    """EXISTS [TABLE | VIEW] as a query of the tables there are: the engine's own would tell of files.

    Empty: it asks for something else.
    """
    end = ""
    if len(tokens) > 3 and tokens[-2].name == "format":
        tokens, end = tokens[:-2], f" FORMAT {tokens[-1].text}"
    what, names = tokens[1].text.upper() if len(tokens) > 2 else "", tokens[1:]
    if what in ("TEMPORARY", "DATABASE", "DICTIONARY"):
        return ""
    if what in ("TABLE", "VIEW"):
        names = tokens[2:]
    separators = [token.text for token in names[1::2]]
    if separators not in ([], ["."]) or not names or not all(token.name for token in names[::2]):
        raise EndpointError(SYNTAX_ERROR, "EXISTS is open as EXISTS [TABLE | VIEW] [database.]name")
    database = f"'{_unquoted(names[0])}'" if separators else "currentDatabase()"
    views = " AND engine LIKE '%View'" if what == "VIEW" else ""
    return (
        "SELECT toUInt8(count() > 0) AS result FROM system.tables"  # noqa: S608  # names, quoted
        f" WHERE database = {database} AND name = '{_unquoted(names[-1])}'{views}{end}"
    )


def _unquoted(token: Token) -> str:
    """A name as it stands between the quotes of a string."""
    if token.kind == "word":
        return token.text
    mark = token.text[0]
    return token.text[1:-1].replace(mark * 2, mark).replace("'", "''")


def _is_checked(words: Sequence[str], tokens: Sequence[Token]) -> bool:
    """Whether a CREATE may run with the owner's rights."""
    if words[1:2] != ["TABLE"]:
        return False
    rest = tokens[5:] if words[2:5] == ["IF", "NOT", "EXISTS"] else tokens[2:]
    if len(rest) > 2 and rest[0].name == "default" and rest[1].text == ".":
        rest = rest[2:]
    if len(rest) < 2 or not _PLAIN_NAME.fullmatch(rest[0].name) or rest[1].text == ".":
        return False
    engines = _engines(rest)
    # What can look at another table, or at a file by the name of one.
    looks = {"SELECT", "AS", "FROM", "CLONE", "IN", "HASCOLUMNINTABLE", "JOINGET", "JOINGETORNULL"}
    names = {token.name.upper() for token in rest[1:]}
    return len(engines) == 1 and engines[0] in closed.ENGINES and not looks & names


def _engines(tokens: Sequence[Token]) -> list[str]:
    """What `ENGINE [=] name` names outside of brackets: inside, a column of that name may be compared."""
    found = []
    depth = 0
    for index, token in enumerate(tokens):
        depth += {"(": 1, ")": -1}.get(token.text, 0)
        if depth == 0 and token.kind == "word" and token.name == "engine":
            following = [other for other in tokens[index + 1 : index + 3] if other.text != "="]
            found.append(following[0].name if following else "")
    return found


def _check_tokens(tokens: Sequence[Token], table_functions: frozenset[str]) -> None:
    in_settings = tokens[0].text.upper() == "SET"
    rows = _rows_start(tokens)
    for index, token in enumerate(tokens):
        name = token.name
        if not name:
            continue
        following = tokens[index + 1].text if index + 1 < len(tokens) else ""
        if token.kind == "word" and name.upper() in closed.WORDS:
            raise EndpointError(ACCESS_DENIED, f"{token.text.upper()} is closed to network users")
        if token.kind == "quoted" and "\\" in token.text:
            # An escape would spell a closed name in another way; no name of ours needs one.
            raise EndpointError(
                ACCESS_DENIED, f"the name {token.text} has an escape, which is closed to network users"
            )
        calls = following == "(" and index != rows
        if name == "format" and _is_pattern(tokens[index + 2 : index + 4]):
            calls = False
        if name in closed.NAMES or (calls and closed.is_closed_call(name, table_functions)):
            raise EndpointError(
                ACCESS_DENIED, f"{token.text} reaches outside of the store: closed to network users"
            )
        in_settings = in_settings or (token.kind == "word" and name in ("settings", "setting"))
        if in_settings and following == "=" and closed.is_closed_setting(name):
            raise EndpointError(READONLY, f"Setting {token.text} is closed to network users")
        if token.kind == "word" and name == "engine":
            _check_engine(tokens[index + 1 : index + 3])


def _rows_start(tokens: Sequence[Token]) -> int | None:
    """Where an INSERT has the word VALUES; elsewhere it may be the table function of that name."""
    if tokens[0].text.upper() != "INSERT":
        return None
    depth = 0
    for index, token in enumerate(tokens):
        depth += {"(": 1, ")": -1}.get(token.text, 0)
        word = token.text.upper() if token.kind == "word" else ""
        if word in ("SELECT", "FROM", "FUNCTION", "WITH"):
            return None
        if word == "VALUES" and depth == 0:
            return index
    return None


def _is_pattern(arguments: Sequence[Token]) -> bool:
    """Whether they begin the function `format('{}…', …)`: the table function of that name takes a format's name first."""
    return (
        len(arguments) == 2
        and arguments[0].kind == "string"
        and "{" in arguments[0].text
        and arguments[1].text == ","
    )


def _check_identifiers(tokens: Sequence[Token], parameters: Mapping[str, str]) -> None:
    """An identifier in a parameter names a table, a column, and a function too."""
    if not any("identifier" in token.text.lower() for token in tokens):
        return
    for value in parameters.values():
        if value.lower() in closed.NAMES or "\\" in value:
            raise EndpointError(
                ACCESS_DENIED, f"{value} reaches outside of the store: closed to network users"
            )


def _check_engine(following: Sequence[Token]) -> None:
    names = [token for token in following if token.text != "="][:1]
    # `SELECT engine FROM system.tables` has the word too: only a name of an engine that is closed matters there.
    if following and following[0].text == "=" and (not names or names[0].kind == "string"):
        return
    if following and following[0].text == "=" and names[0].name not in closed.ENGINES:
        raise EndpointError(ACCESS_DENIED, f"engine {names[0].text} is closed to network users")
