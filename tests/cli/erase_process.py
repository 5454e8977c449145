"""`spanloop erase` as a process that dies, by SIGKILL, where a stage of it begins or ends: FUNCTION CALL before|after ARGUMENT…"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from typing import Any


def die_at(place: str, call: int, when: str) -> None:
    """Lets this process die at the given call of a function, named MODULE:FUNCTION."""
    module_name, _, name = place.partition(":")
    module = import_module(module_name)
    real = getattr(module, name)
    calls = 0

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(module, name, dying)


if __name__ == "__main__":
    place, call, when, *arguments = sys.argv[1:]
    die_at(place, int(call), when)
    from spanloop.main import main

    sys.argv = ["spanloop", *arguments]
    main()
