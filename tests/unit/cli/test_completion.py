"""Completion in real shells, and how it keeps quiet when something is wrong."""

from __future__ import annotations

import json
import os
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import BashComplete

from gear_plugin import cli
from gear_plugin.catalog import ImageRecord, SqliteCatalog
from gear_plugin.cli import completion
from gear_plugin.cli.completion import SHELLS
from gear_plugin.digest import Digest
from gear_plugin.names import ImageId

VISIBLE = {name for name, command in cli.cli.commands.items() if not command.hidden}


class Machine:
    """A machine's Gear folders, and its shells."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.environ = {
            **{key: value for key, value in os.environ.items() if not key.startswith("GEAR_")},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(folder),
            "GEAR_ROOT": str(self.root),
            "GEAR_CATALOG": f"sqlite://{folder}/catalog.sqlite",
            "DOCKER_HOST": f"unix://{folder}/d.sock",
        }
        self._catalog = folder / "catalog.sqlite"

    def build(self, *names: str) -> None:
        for name in names:
            (self.root / "build" / ImageId.parse(name).folder).mkdir(parents=True)
        (self.root / "build" / ".lock-x=1").touch()

    def install(self, name: str) -> None:
        (self.root / "images").mkdir(parents=True, exist_ok=True)
        (self.root / "images" / ImageId.parse(name).folder).symlink_to("0" * 64)
        (self.root / "images" / ("0" * 64)).mkdir(exist_ok=True)

    def push(self, name: str) -> None:
        image, digest = ImageId.parse(name), Digest.of(b"")
        catalog = SqliteCatalog(self._catalog)
        catalog.put_image(ImageRecord(image, image.gear, digest, digest, digest, 0, 0, 0), {})
        catalog.close()

    def run(self, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, env=self.environ | environ
        )
        assert (done.returncode, done.stderr) == (0, ""), done
        return done

    def bash(self, line: str, **environ: str) -> list[str]:
        """What bash would offer for *line*, of which it replaces the last word."""
        script = (
            'eval "$(gear completion bash)"; COMP_LINE=$1 COMP_POINT=${#1}; '
            '_gear_completion gear; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        return self.run("bash", "-c", script, "bash", line, **environ).stdout.split()

    def offers(self, *words: str, **environ: str) -> list[str]:
        """What any shell would offer for the last of *words*; in this process, as it is quicker."""
        with pytest.MonkeyPatch.context() as patch:
            for key, value in (self.environ | environ).items():
                patch.setenv(key, value)
            complete = BashComplete(cli.cli, {}, "gear", "_GEAR_COMPLETE")
            return [item.value for item in complete.get_completions(list(words[:-1]), words[-1])]

    def zsh(self, words: str, at: int) -> list[str]:
        """What zsh's script gets for its question."""
        question = {"_GEAR_COMPLETE": "zsh_complete", "COMP_WORDS": words, "COMP_CWORD": str(at)}
        return self.run("gear", **question).stdout.splitlines()[1::3]

    def fish(self, line: str) -> list[str]:
        script = 'gear completion fish | source; complete -C "$argv[1]"'
        shown = self.run("fish", "--no-config", "-c", script, line).stdout
        return [row.partition("\t")[0] for row in shown.splitlines()]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    # A moment is long on a busy machine; only what hangs may use it up.
    monkeypatch.setattr(completion, "_MOMENT_S", 30.0)
    return Machine(tmp_path)


def needs(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"needs {shell}")


def test_commands_options_and_choices(machine: Machine) -> None:
    """
    Those that help shows, and no hidden one.
    """
    assert set(machine.offers("")) == VISIBLE
    assert machine.offers("inspect", "--fi") == ["--files"]
    assert machine.offers("inspect", "--from", "") == ["node", "build", "engine", "registry"]


@pytest.mark.parametrize("command", ["push", "inspect", "restore", "fs"])
def test_gear_images(machine: Machine, command: str) -> None:
    """
    What was built here, is on the node, or was pushed: each once; locks are no images.
    """
    machine.build("web:1", "registry.example:5000/team/app:2")
    machine.install("web:1")
    machine.install("nginx:1.25")
    machine.push("pushed:3")
    assert machine.offers(command, "") == [
        "nginx-gear:1.25",
        "pushed-gear:3",
        "registry.example:5000/team/app-gear:2",
        "web-gear:1",
    ]
    assert machine.offers(command, "we") == ["web-gear:1"]


def test_bash(machine: Machine) -> None:
    """
    It takes colons for word ends, and gets the rest alone, unless it was told otherwise.
    """
    machine.build("registry.example:5000/team/app:2", "registry.example:5000/team/app:22")
    assert machine.bash("gear re") == ["restore"]
    line = "gear restore registry.example:5000/team/app-gear:"
    assert machine.bash(line) == ["2", "22"]
    assert machine.bash("gear restore registry.example:") == [
        "5000/team/app-gear:2",
        "5000/team/app-gear:22",
    ]


def test_the_words_before_count(machine: Machine, tmp_path: Path) -> None:
    """
    `--root` says where builds are.
    """
    other = Machine(tmp_path / "other")
    other.build("there:1")
    assert machine.offers("--root", str(other.root), "push", "") == ["there-gear:1"]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_one_the_shell_can_read(machine: Machine, tmp_path: Path, shell: str) -> None:
    """
    Its own parser says so.
    """
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    script = tmp_path / "script"
    script.write_text(machine.run("gear", "completion", shell).stdout)
    assert "gear" in script.read_text()
    machine.run(shell, "-n", str(script))


def test_zsh_gets_whole_names(machine: Machine) -> None:
    """
    It does not split at colons.
    """
    machine.build("web:1")
    assert machine.zsh("gear push web-gear:", 2) == ["web-gear:1"]


@needs("fish")
def test_fish_completes_commands_and_images(machine: Machine) -> None:
    """
    In a real fish.
    """
    machine.build("web:1")
    assert machine.fish("gear push w") == ["web-gear:1"]


@contextmanager
def engine(path: Path, images: list[dict[str, Any]]) -> Iterator[None]:
    """An engine that lists *images*."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(images if self.path == "/images/json" else None).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

        def address_string(self) -> str:
            return "test"

    with socketserver.UnixStreamServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield
        server.shutdown()
        thread.join()


def test_build_completes_the_engines_images(machine: Machine, tmp_path: Path) -> None:
    """
    Ordinary ones with a name.
    """
    images: list[dict[str, Any]] = [
        {"RepoTags": ["nginx:1.25", "nginx:latest"]},
        {"RepoTags": ["nginx-gear:1.25"]},
        {"RepoTags": ["<none>:<none>"]},
        {"RepoTags": None},
    ]
    with engine(tmp_path / "d.sock", images):
        assert machine.offers("build", "ngi") == ["nginx:1.25", "nginx:latest"]


def test_an_engine_that_hangs_holds_nobody_up(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The tab key answers, with nothing.
    """
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "d.sock"))
        mute.listen()
        began = time.monotonic()
        monkeypatch.setattr(completion, "_MOMENT_S", 0.3)
        assert machine.offers("build", "") == []
        assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    "environ",
    [
        {"GEAR_CONFIG": "/nowhere/gear.toml"},
        {"GEAR_CACHE_LIMIT": "much"},
        {"GEAR_CATALOG": "nonsense:"},
        {"GEAR_ROOT": "/proc/self/mem"},
        {"DOCKER_HOST": "tcp://127.0.0.1:1"},
    ],
)
def test_what_is_wrong_is_not_said_while_typing(
    machine: Machine, environ: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    """
    Nothing is offered, and nothing is printed into the command line.
    """
    assert machine.offers("push", "", **environ) == machine.offers("build", "", **environ) == []
    assert capfd.readouterr() == ("", "")


def test_completing_makes_nothing(machine: Machine, tmp_path: Path) -> None:
    """
    No catalog, no folder.
    """
    machine.offers("push", "")
    assert list(tmp_path.iterdir()) == []


def test_another_shell_is_refused() -> None:
    """
    With those that there are.
    """
    command = [sys.executable, "-m", "gear_plugin", "completion", "tcsh"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "'bash', 'zsh', 'fish'" in done.stderr
