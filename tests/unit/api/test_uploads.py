"""Uploads as jobs in the background."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from gear_plugin.api import uploads
from gear_plugin.api.uploads import Uploads
from gear_plugin.errors import ImageNotFound, Unavailable
from gear_plugin.names import ImageId
from tests.waiting import eventually

APP, OTHER = ImageId.parse("team/app:1"), ImageId.parse("other:1")

# Waits for the file in argv[3] before it does anything.
SCRIPT = """
import json, pathlib, sys, time
verb, image, gate = sys.argv[1:]
print("reading", image, file=sys.stderr, flush=True)
while not pathlib.Path(gate).exists():
    time.sleep(0.01)
if "bad" in image and verb == "push":
    print("gear: the store is full; make room", file=sys.stderr)
    sys.exit(7)
print(json.dumps({"verb": verb, "image": image}))
"""


class Node:
    def __init__(self, folder: Path) -> None:
        self.gate = folder / "gate"
        self.commands: list[tuple[str, str]] = []
        self.uploads = Uploads(self.command)

    def command(self, verb: str, image: ImageId) -> Sequence[str]:
        self.commands.append((verb, str(image)))
        return [sys.executable, "-c", SCRIPT, verb, str(image), str(self.gate)]

    def state(self, image: ImageId) -> str:
        return str(self.uploads.progress(image)["state"])


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_a_job_builds_then_pushes(node: Node) -> None:
    """
    With the Gear image's name for the push, and both results.
    """
    node.gate.touch()
    node.uploads.start(APP)
    eventually(lambda: node.state(APP) == "done")
    assert node.commands == [("build", "team/app:1"), ("push", "team/app-gear:1")]
    done = node.uploads.progress(APP)
    assert done["result"]["push"] == {"verb": "push", "image": "team/app-gear:1"}
    assert done["result"]["build"]["verb"] == "build"
    assert done["error"] == ""
    assert done["ended_s"] >= done["queued_s"]


def test_steps_show_while_it_runs(node: Node) -> None:
    node.uploads.start(APP)
    eventually(lambda: node.uploads.progress(APP)["step"] == "build: reading team/app:1")
    assert node.state(APP) == "running"
    node.gate.touch()
    eventually(lambda: node.state(APP) == "done")


def test_asking_again_gives_the_same_job(node: Node) -> None:
    """
    Until it has ended; then it is done again.
    """
    first = node.uploads.start(APP)
    eventually(lambda: node.state(APP) == "running")
    again = node.uploads.start(APP)
    assert again["queued_s"] == first["queued_s"]
    node.gate.touch()
    eventually(lambda: node.state(APP) == "done")
    assert len(node.commands) == 2
    node.uploads.start(APP)
    eventually(lambda: len(node.commands) == 4)
    eventually(lambda: node.state(APP) == "done")


def test_others_wait_for_their_turn(node: Node) -> None:
    node.uploads.start(APP)
    eventually(lambda: node.state(APP) == "running")
    assert node.uploads.start(OTHER)["state"] == "queued"
    node.gate.touch()
    eventually(lambda: node.state(OTHER) == "done")
    assert [verb for verb, _ in node.commands] == ["build", "push", "build", "push"]


def test_a_failure_says_what_the_command_said(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    """
    The line that a person would have seen, and whose it is.
    """
    node.gate.touch()
    bad = ImageId.parse("bad:1")
    node.uploads.start(bad)
    eventually(lambda: node.state(bad) == "failed")
    error = node.uploads.progress(bad)["error"]
    assert error == "gear push bad-gear:1: the store is full; make room"
    assert error in caplog.text


def test_a_command_that_is_not_there_fails_the_job(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runner = Uploads(lambda _verb, _image: [str(tmp_path / "none")])
    runner.start(APP)
    eventually(lambda: runner.progress(APP)["state"] == "failed")
    assert "No such file" in runner.progress(APP)["error"]
    assert "failed" in caplog.text


def test_a_command_that_hangs_is_killed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """
    The next one's turn comes.
    """
    hanging = [sys.executable, "-c", "import time; time.sleep(99)"]
    runner = Uploads(lambda _verb, _image: hanging, limit_s=0.05)
    for image in (APP, OTHER):
        runner.start(image)
        eventually(lambda image=image: runner.progress(image)["state"] == "failed")  # type: ignore[misc]
    assert "was killed" in runner.progress(APP)["error"]
    assert "failed" in caplog.text


def test_a_result_of_any_length_is_taken(tmp_path: Path) -> None:
    """
    It does not stop the steps from being read.
    """
    script = (
        "import sys; print('{\"x\": \"' + 'y' * 300_000 + '\"}'); print('end', file=sys.stderr)"
    )
    runner = Uploads(lambda _verb, _image: [sys.executable, "-c", script])
    runner.start(APP)
    eventually(lambda: runner.progress(APP)["state"] == "done")
    assert len(runner.progress(APP)["result"]["build"]["x"]) == 300_000


def test_jobs_are_bounded(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Those that wait, and those that are remembered.
    """
    monkeypatch.setattr(uploads, "REMEMBERED", 3)
    node.uploads.start(APP)
    eventually(lambda: node.state(APP) == "running")
    names = [ImageId("n", str(number)) for number in range(33)]
    for name in names[:32]:
        node.uploads.start(name)
    with pytest.raises(Unavailable, match="try again later"):
        node.uploads.start(names[32])
    with pytest.raises(ImageNotFound):
        node.uploads.progress(names[32])
    node.uploads._command = lambda _verb, _image: [sys.executable, "-c", "print('{}')"]
    with node.uploads._lock:
        while len(node.uploads._queue) > 4:
            job = node.uploads._queue.pop()
            job.state = "done"
    node.gate.touch()
    eventually(lambda: node.state(names[3]) == "done")
    node.uploads.start(OTHER)
    assert len(node.uploads._jobs) <= 3
