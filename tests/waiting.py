"""Waiting in real time for what another process does."""

import inspect
import time
from collections.abc import Callable

LIMIT_S = 60.0
"""For a loaded machine: who waits goes on as soon as it is so."""


def eventually(condition: Callable[[], object], *, within: float = LIMIT_S) -> None:
    """Until the condition is true; raises AssertionError, with its source, when it is not."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, (
            f"not within {within:g} s:\n{inspect.getsource(condition)}"
        )
        time.sleep(0.02)
