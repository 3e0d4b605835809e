"""Long work: each job is one function and one result value."""

from gear_plugin.jobs.build import BuildResult, build
from gear_plugin.jobs.engine import DockerEngine, Engine, Progress
from gear_plugin.jobs.push import PushResult, push

__all__ = ["BuildResult", "DockerEngine", "Engine", "Progress", "PushResult", "build", "push"]
