"""What is closed to network users, by name: words, functions, table functions, engines and settings."""

from __future__ import annotations

import re
from typing import Final

from spanloop_collector.endpoint.errors import READONLY, SYNTAX_ERROR, EndpointError

# Closed wherever they stand unquoted. The first two have no grant; PARALLEL WITH and EXECUTE AS carry a second
# statement; a DEFINER view runs with the owner's rights, not with its caller's.
WORDS: Final = frozenset(
    {"OUTFILE", "INFILE", "PARALLEL", "IMPERSONATE", "DEFINER", "MATERIALIZED", "FREEZE", "UNFREEZE", "FETCH"}
)
# Tables that may be read and added to, and not changed.
LASTING: Final = frozenset({"audit", "erasures", "promotions"})
# Functions with side effects that no grant closes. As names they are closed in every place, called or not:
# `* APPLY(file)` and `arrayMap(file, …)` name a function without calling it.
NAMES: Final = frozenset({"file", "catboostevaluate", "executable", "executablepool", "python"})
# Not here: whatever takes a structure (`values`, `null`, `generateRandom`, …) or data in a format. A structure is text
# with default expressions in it, and `Values` is a format of expressions: both are SQL that this module cannot read.
_OPEN_TABLE_FUNCTIONS: Final = frozenset(
    {
        "generate_series",
        "generateseries",
        "loop",
        "merge",
        "mergetreeanalyzeindexes",
        "mergetreecodecblockcounts",
        "mergetreeindex",
        "mergetreeprojection",
        "mergetreetextindex",
        "numbers",
        "numbers_mt",
        "primes",
        "view",
        "viewexplain",
        "viewifpermitted",
        "zeros",
        "zeros_mt",
    }
)
# Calls (table functions, dictionary sources, disks) that reach out of the store; the grants close most of them too.
_CALLS: Final = frozenset({"disk", "http", "https", "source", "s3", "eval"})
_CALL_PREFIXES: Final = ("ai", "system_", "llm")
ENGINES: Final = frozenset(
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
_SETTINGS: Final = frozenset(
    {
        # SQL in a text, where the guard cannot read it, or the text of the query in another language.
        "filter",
        "order",
        "select",
        "sort",
        "dialect",
        # They change an answer's format behind the endpoint's back.
        "format",
        "input_format",
        "output_format",
        "framing_output_format",
        # The mark by which a query is ended when its client goes away.
        "log_comment",
    }
)
_SETTING_PREFIXES: Final = (
    # They name files or servers, which the engine opens whoever asks.
    "format_avro_schema_registry",
    "format_schema",
    "format_template",
    "input_format_record_errors",
    "output_format_schema",
    "disk",
    "storage_policy",
    "table_disk",
    "rename_files",
    # More SQL in texts.
    "additional_",
    "implicit_table",
    "input_format_values",
    "param_",
    "parallel_replicas_custom_key",
    "polyglot_",
    "promql_",
    "schema_inference_hints",
    # Rights: whose a view has, and what a role may.
    "default_materialized_view_sql_security",
    "default_normal_view_sql_security",
    "default_view_definer",
    "allow_ddl",
    "readonly",
    "role",
    # What one query may take.
    "max_memory_usage",
    "max_untracked_memory",
    "memory_overcommit",
    "memory_usage_overcommit",
)


def is_closed_call(name: str, table_functions: frozenset[str]) -> bool:
    """Whether a call of this name (in lower case) reaches outside of the store, or takes SQL as text."""
    if name in _OPEN_TABLE_FUNCTIONS:
        return False
    return name in table_functions or name in _CALLS or name.startswith(_CALL_PREFIXES)


def is_closed_setting(name: str) -> bool:
    """Whether a setting names files or servers, holds SQL, or would undo a limit."""
    return name.lower() in _SETTINGS or name.lower().startswith(_SETTING_PREFIXES)


def check_setting(name: str) -> None:
    """Refuses a setting, given as a parameter, that is closed.

    Raises:
        EndpointError: it is closed, or its name is none.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise EndpointError(SYNTAX_ERROR, f"{name!r} is no setting's name")
    if is_closed_setting(name):
        raise EndpointError(READONLY, f"Setting {name} is closed to network users")
