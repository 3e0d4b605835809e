"""All checks together: in bounded time, whatever hangs, dies or is missing."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gear_plugin.catalog import MemoryCatalog
from gear_plugin.config import Config
from gear_plugin.digest import Digest
from gear_plugin.errors import SourceUnavailable
from gear_plugin.image import Inode, Kind, Tree, write_erofs
from gear_plugin.jobs.doctor import Finding, Patient, Status, diagnose
from tests.unit.rootfs import fuse_daemon

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def patient(folder: Path, catalog: Callable[[], MemoryCatalog] = MemoryCatalog) -> Patient:
    """A machine without an engine, below *folder*."""
    config = Config(
        root=folder / "root",
        run=folder / "run",
        store=str(folder / "store"),
        catalog="etcd://elsewhere:2379",
    )
    return Patient(config, f"unix://{folder}/d.sock", {}, catalog)


def by_check(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


def test_every_part_has_its_line(tmp_path: Path) -> None:
    """
    On a machine with nothing but Gear's program, only the engine is broken.
    """
    found = by_check(diagnose(patient(tmp_path), timeout_s=60))
    for check in ("kernel", "way of mounting", "FUSE device", "FUSE library", "main folder: room"):
        assert check in found
    assert found["catalog"].detail == "etcd://elsewhere:2379 answers; images: 0"
    assert found["store"].status is Status.WARN
    assert found["client of this machine"].status is Status.SKIP
    broken = [check for check, finding in found.items() if finding.status is Status.FIX]
    assert broken == ["Docker engine"]
    assert list(tmp_path.iterdir()) == []


def hangs() -> MemoryCatalog:
    time.sleep(600)
    raise AssertionError


def dies() -> MemoryCatalog:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def refuses() -> MemoryCatalog:
    raise SourceUnavailable("etcd: connection refused")


def breaks() -> MemoryCatalog:
    raise OSError(5, "Input/output error")


@pytest.mark.parametrize(
    ("catalog", "words"),
    [
        (hangs, "no answer within 6 s"),
        (dies, "ended with signal 9"),
        (refuses, "etcd: connection refused"),
        (breaks, "Input/output error"),
    ],
)
def test_what_fails_is_one_line_and_the_rest_goes_on(
    tmp_path: Path, catalog: Callable[[], MemoryCatalog], words: str
) -> None:
    """
    With what to do; a check after it is not held up.
    """
    found = by_check(diagnose(patient(tmp_path, catalog), timeout_s=6))
    assert (found["catalog"].status, words in found["catalog"].detail) == (Status.FIX, True)
    assert "--catalog" in found["catalog"].remedy
    assert found["store"].status is Status.WARN


def test_a_bug_is_not_dressed_up(tmp_path: Path) -> None:
    """
    It rises, with the traceback of the process it happened in.
    """

    def buggy() -> MemoryCatalog:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError) as caught:
        diagnose(patient(tmp_path, buggy), timeout_s=60)
    assert "in buggy" in caught.value.__notes__[0]


@pytest.fixture
def stopped_store(tmp_path: Path) -> Iterator[Path]:
    """A store on a real mount whose server is there and does not answer."""
    tree = Tree()
    tree.root.children[b"x"] = Inode(Kind.FILE, 0o644, 0, 0, 0, size=1, digest=Digest.of(b"x"))
    (tmp_path / "index").write_bytes(write_erofs(tree))
    words = ["store", "private", "supply", "index"]
    for word in words[:3]:
        (tmp_path / word).mkdir()
    paths = [str(tmp_path / word) for word in words]
    command = [sys.executable, fuse_daemon.__file__, *paths, "alone"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None and daemon.stdout.readline() == "ready\n"
        daemon.send_signal(signal.SIGSTOP)
        yield tmp_path / "store"
        daemon.kill()
    subprocess.run(["umount", "-l", tmp_path / "store"], check=True)


@needs_root
@pytest.mark.root
def test_a_hung_store_is_a_line_and_not_a_hang(stopped_store: Path) -> None:
    """
    Its reader cannot even be killed; the command ends all the same, and in time.
    """
    folder = stopped_store.parent
    began = time.monotonic()
    done = gear(folder, "doctor", "--json", "--timeout", "2")
    assert time.monotonic() - began < 60
    found = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert found["store"]["status"] == "fix"
    assert found["store"]["detail"] == "no answer within 2 s"
    assert "server" in found["store"]["remedy"]
    assert done.returncode == 1


def gear(folder: Path, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The real command, on a machine without an engine."""
    places = ["--root", f"{folder}/root", "--store", f"{folder}/store"]
    places += ["--catalog", f"sqlite://{folder}/catalog.sqlite", "--host", f"unix://{folder}/d"]
    command = [sys.executable, "-m", "gear_plugin", *places, *words]
    return subprocess.run(command, text=True, capture_output=True, timeout=120, **options)


def test_json_has_every_field_and_plain_lines_are_plain(tmp_path: Path) -> None:
    """
    The same findings both ways; no escape sequence where nobody looks.
    """
    listed = json.loads(gear(tmp_path, "doctor", "--json").stdout)
    assert all(list(one) == ["check", "status", "detail", "remedy"] for one in listed)
    assert {one["status"] for one in listed} <= {"ok", "warn", "fix", "skip"}
    done = gear(tmp_path, "doctor")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [one["status"] for one in listed]
    assert "\x1b" not in done.stdout
    assert (done.returncode, done.stderr) == (1, "")
    (engine,) = (line for line in lines if "Docker engine" in line)
    assert engine.endswith(" -> " + next(o["remedy"] for o in listed if "engine" in o["check"]))


def test_on_a_terminal_it_is_green(tmp_path: Path) -> None:
    """
    And red for what is broken; NO_COLOR is obeyed.
    """
    shown = on_terminal(tmp_path, {})
    assert "\x1b[32m\x1b[1mok  \x1b[0m  kernel" in shown
    assert "\x1b[31m\x1b[1mfix \x1b[0m  Docker engine" in shown
    assert "\x1b" not in on_terminal(tmp_path, {"NO_COLOR": "1"})


def on_terminal(folder: Path, environ: dict[str, str]) -> str:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "gear_plugin", "--root", str(folder / "root")]
    command += ["--host", f"unix://{folder}/d", "--store", f"{folder}/store", "doctor"]
    process = subprocess.Popen(command, stdout=theirs, env={**os.environ, **environ})
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    assert process.wait(60) == 1
    return shown.decode()


@pytest.mark.parametrize("words", [["--timeout", "0"], ["--registry", "team/app:1"]])
def test_wrong_words_are_2(tmp_path: Path, words: list[str]) -> None:
    """
    A time limit of nothing, an image that names no registry.
    """
    assert gear(tmp_path, "doctor", *words).returncode == 2


def test_an_image_names_its_registry(tmp_path: Path) -> None:
    """
    So that a name can be pasted as it is.
    """
    done = gear(tmp_path, "doctor", "--registry", "registry.invalid:5000/team/app:1")
    assert "registry registry.invalid:5000" in done.stdout
