"""
Running a command in a named network namespace, and nothing else of its own.

`ip netns exec` would also give it a mount namespace, in which a dockerd's or a
FUSE daemon's mounts could not be seen from here.
"""

from __future__ import annotations


def inside(netns: str, command: list[str]) -> list[str]:
    """*command*, run in the namespace *netns*; empty: in this process's own."""
    return ["nsenter", f"--net=/run/netns/{netns}", "--", *command] if netns else command
