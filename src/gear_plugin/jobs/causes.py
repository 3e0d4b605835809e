"""
What the system said, out of what the libraries of HTTP wrapped around it.

Pure; safe from any thread.
"""

from __future__ import annotations


def system_error(error: BaseException) -> OSError | None:
    """The system's own error if it is somewhere in *error*; its `strerror` is for people."""
    todo: list[object] = [error]
    while todo:
        found = todo.pop()
        if isinstance(found, OSError) and found.strerror:
            return found
        if isinstance(found, BaseException):
            todo += [found.__context__, getattr(found, "reason", None), *found.args]
        elif isinstance(found, tuple | list):
            todo += found
    return None
