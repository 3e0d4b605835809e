"""
Logging set-up; the only module that installs handlers.

One line an event on stderr, which in the managed plugin is dockerd's log.  A
command speaks to a person, as its other messages do; a daemon's lines are dated.
"""

from __future__ import annotations

import logging
import sys

COMMAND = "gear"
"""The process name of what is no daemon."""


def setup(level: str, process: str) -> None:
    """Send records of *level* and above to stderr, marked with the *process* name."""
    dated = f"%(asctime)s {process} %(levelname)s %(name)s: %(message)s"
    is_plain = process == COMMAND and level != "debug"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"{COMMAND}: %(message)s" if is_plain else dated))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
