"""
What each test image is started for: a command, and what it must print.

A task does the work that the image is made for, once, and ends; `docker run`
of it is what "run-to-task-done" and "warm start" measure.
"""

from __future__ import annotations

from dataclasses import dataclass

_FETCH = (
    "import urllib.request as u; "
    "print(u.urlopen('http://127.0.0.1:80/', timeout=20).read().decode().strip())"
)
_DET = "import numpy, scipy.linalg; print(scipy.linalg.det(numpy.eye(3)))"


@dataclass(frozen=True)
class Task:
    """A program of the image with its arguments, and the last line that it must print."""

    program: str
    arguments: tuple[str, ...]
    prints: str

    def run_words(self, ref: str) -> tuple[str, ...]:
        """The words of `docker run` that do it, once."""
        options = ("--rm", "--network", "none", "--entrypoint", self.program)
        return ("run", *options, ref, *self.arguments)

    def is_done(self, output: str) -> bool:
        """Whether *output* is what it prints."""
        return output.rstrip("\n").rpartition("\n")[2] == self.prints


TASKS = {
    "web": Task(
        "python3",
        ("-c", "import app; print(app.app.test_client().get('/').text)"),
        "hello from one",
    ),
    "nginx": Task("sh", ("-c", f'nginx && exec python3 -c "{_FETCH}"'), "hello"),
    "scipy": Task("python3", ("-c", _DET), "1.0"),
}
"""Only images that are here are measured; names are those of tests.engine.images.RECIPES."""
