"""Which run, session, rollout and task this process works on, said by variables: stamped on every span."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# variable → span attribute. `build` makes episodes of sessions and rollouts, and groups of tasks.
VARIABLES: Final[Mapping[str, str]] = {
    "SPANLOOP_RUN_ID": "spanloop.run.id",
    "SPANLOOP_SESSION_ID": "session.id",
    "SPANLOOP_ROLLOUT_ID": "spanloop.rollout.id",
    "SPANLOOP_TASK_ID": "spanloop.task.id",
}


def stamps(environ: Mapping[str, str]) -> dict[str, str]:
    """The span attributes that `environ` asks for; a variable that is set to nothing counts as unset.

    They belong on every span that does not carry the key already: what the agent says of one span is more exact than what
    its environment says of all.
    """
    return {key: value for name, key in VARIABLES.items() if (value := environ.get(name, "").strip())}
