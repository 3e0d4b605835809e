"""
Logging set-up; the only module that installs handlers.

One line an event on stderr, which in the managed plugin is dockerd's log.
"""

from __future__ import annotations

import logging
import sys


def setup(level: str, process: str) -> None:
    """Send records of *level* and above to stderr, marked with the *process* name."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter(f"%(asctime)s {process} %(levelname)s %(name)s: %(message)s")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
