"""
Long work: each job is one function and one result value.

A job is called from one thread, starts its own, and has ended them when it
returns or raises; after an interrupt (KeyboardInterrupt) too.  But for those
that hang in a store or catalog that was given up (`watched`).
"""

from gear_plugin.jobs.build import build
from gear_plugin.jobs.engine import DockerEngine, Engine
from gear_plugin.jobs.folder import BuildFolder, BuildResult
from gear_plugin.jobs.progress import Progress
from gear_plugin.jobs.push import PushResult, push
from gear_plugin.jobs.watched import Watch

__all__ = [
    "BuildFolder",
    "BuildResult",
    "DockerEngine",
    "Engine",
    "Progress",
    "PushResult",
    "Watch",
    "build",
    "push",
]
