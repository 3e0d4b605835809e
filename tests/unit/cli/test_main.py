"""The command's frame: exit codes, messages, global options, what is loaded when."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from gear_plugin import __version__, cli
from gear_plugin import log as logs
from gear_plugin.cli import daemons
from gear_plugin.config import Config
from gear_plugin.errors import (
    BadConfig,
    ContentNotFound,
    GearError,
    LayerInUse,
    NotFound,
    StorageFull,
)


def every_error(kind: type[GearError] = GearError) -> list[type[GearError]]:
    return [kind, *(found for child in kind.__subclasses__() for found in every_error(child))]


def gear(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the real command, without the caller's GEAR_ settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GEAR_")}
    return subprocess.run(
        [sys.executable, "-m", "gear_plugin", *words],
        capture_output=True,
        text=True,
        env=kept | environ,
        timeout=60,
    )


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Runner:
    return Runner(monkeypatch)


class Runner:
    """Runs `main` in this process with one more command, whose body the test gives."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.config: Config | None = None

    def __call__(self, *words: str, error: BaseException | None = None) -> int:
        @click.command()
        @click.pass_obj
        def probe(config: Config) -> None:
            self.config = config
            if error is not None:
                raise error

        self._monkeypatch.setitem(cli.cli.commands, "probe", probe)
        self._monkeypatch.setattr(logs, "setup", lambda *_: None)
        self._monkeypatch.setattr(sys, "argv", ["gear", *words, "probe"])
        try:
            cli.main()
        except SystemExit as end:
            assert isinstance(end.code, int)
            return end.code
        return 0


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_error_has_a_row_and_the_most_specific_decides(kind: type[GearError]) -> None:
    """
    Of the rows that fit, the nearest ancestor's code is the one that is used.
    """
    rows = dict(cli.EXIT_CODES)
    nearest = next(base for base in kind.__mro__ if base in rows)
    assert cli.exit_code(kind("x")) == rows[nearest]


def test_codes_are_told_apart() -> None:
    """
    No two rows share a code, and none means success, a bug or an interrupt.
    """
    codes = [code for _, code in cli.EXIT_CODES]
    assert len(set(codes)) == len(codes)
    assert not {0, cli.BUG, cli.INTERRUPTED} & set(codes)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadConfig("no such setting"), 2),
        (ContentNotFound("no source has it"), 3),
        (LayerInUse("still mounted"), 4),
        (StorageFull("no room left"), 7),
    ],
)
def test_an_expected_error_is_one_line(
    run: Runner, capfd: pytest.CaptureFixture[str], error: GearError, code: int
) -> None:
    """
    On stderr, after the program's name; nothing on stdout, no traceback.
    """
    assert run(error=error) == code
    assert capfd.readouterr() == ("", f"gear: {error}\n")


def test_a_bug_shows_its_traceback(run: Runner, capfd: pytest.CaptureFixture[str]) -> None:
    """
    A bug is never dressed up as the user's mistake.
    """
    assert run(error=ZeroDivisionError("oops")) == 70
    assert capfd.readouterr().err.endswith("ZeroDivisionError: oops\n")


def test_an_interrupt_is_130(run: Runner, capfd: pytest.CaptureFixture[str]) -> None:
    """
    As a shell counts SIGINT, and without a traceback.
    """
    assert run(error=KeyboardInterrupt()) == 128 + signal.SIGINT
    assert "Traceback" not in capfd.readouterr().err


def test_an_interrupt_while_it_starts_has_no_traceback(tmp_path: Path) -> None:
    """
    The imports take up to a second, which is when one notices a typing error.
    """
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    ended = gear("help", PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")


def test_output_that_nobody_reads_is_no_bug() -> None:
    """
    `gear ... | head` ends quietly.
    """
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "gear_plugin", "help"]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, b"")


@pytest.mark.parametrize("words", [["help"], ["completion", "fish"], ["--version"]])
def test_output_that_finds_no_room_is_one_line(words: list[str]) -> None:
    """
    `gear ... > file` on a full disk, whether it shows at the first byte or at the last.
    """
    command = [sys.executable, "-m", "gear_plugin", *words]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=60)
    line = b"gear: cannot write the result: No space left on device\n"
    assert (ended.returncode, ended.stderr) == (7, line)


def test_a_flag_beats_the_environment(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Each global option sets the field of its name.
    """
    monkeypatch.setenv("GEAR_ROOT", "/from/environment")
    monkeypatch.setenv("GEAR_STORE", "/from/environment")
    words = ["--root", "/r", "--catalog", "sqlite:///c", "--host", "tcp://h:1"]
    assert run(*words, "--log-level", "debug") == 0
    assert run.config is not None
    assert run.config.root == Path("/r")
    assert run.config.store == "/from/environment"
    assert run.config.catalog == "sqlite:///c"
    assert run.config.docker_host == "tcp://h:1"
    assert run.config.log_level == "debug"


def test_the_settings_file_is_read(run: Runner, tmp_path: Path) -> None:
    """
    `--config` names it; a flag still beats it.
    """
    file = tmp_path / "gear.toml"
    file.write_text('store = "/file"\nroot = "/file"\n')
    assert run("--config", str(file), "--root", "/flag") == 0
    assert run.config is not None
    assert (run.config.store, run.config.root) == ("/file", Path("/flag"))


def test_a_misspelt_variable_is_told(
    run: Runner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    It changes nothing, and who set it believes that it does.
    """
    monkeypatch.setenv("GEAR_STROE", "/srv")
    assert run() == 0
    assert capsys.readouterr().err == "gear: GEAR_STROE is no setting; do you mean GEAR_STORE?\n"


def test_in_the_plugin_settings_have_bare_names(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    `docker plugin set gear cache_limit=…` reaches the process as `cache_limit`.
    """
    monkeypatch.setenv("cache_limit", "1M")
    assert run() == 0
    assert run.config is not None and run.config.cache_limit == 0
    assert run("--plugin") == 0
    assert run.config.cache_limit == 2**20


def test_a_wrong_setting_is_named() -> None:
    """
    The real process, from its start to its exit code.
    """
    ended = gear("images", GEAR_CACHE_LIMIT="much")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("gear: setting 'cache_limit': ")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [["nonsense"], ["build"], ["--nonsense"], ["build", "UPPER"]])
def test_wrong_words_are_2(words: list[str]) -> None:
    """
    As everything else that is wrong with the caller's words.
    """
    assert gear(*words).returncode == 2


def test_the_storage_driver_needs_root(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """
    Said at once, before anything is made.
    """
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    monkeypatch.setattr(sys, "argv", ["gear", "graphdriver"])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert capfd.readouterr().err == "gear: the storage driver needs root; run it with sudo\n"


def test_a_client_that_cannot_have_its_folder_says_so(tmp_path: Path) -> None:
    """
    It may not be made: another user's, or below a file.
    """
    (tmp_path / "file").touch()
    ended = gear("--root", f"{tmp_path}/file/root", "client", GEAR_RUN=f"{tmp_path}/run")
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"gear: cannot make {tmp_path}/file/root")
    assert ended.stderr.endswith("(Not a directory); run it as root, or set root and run\n")
    ended = gear("--root", f"{tmp_path}/root", "client", GEAR_RUN=f"{tmp_path}/file/run")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)


def test_help_and_version() -> None:
    """
    Help lists what users run, by what it is for, and none of what Gear starts itself.
    """
    shown = gear("--help")
    assert shown.returncode == 0
    _, _, listing = shown.stdout.partition("Make and publish Gear images:\n")
    listed = re.findall(r"^  ([a-z]+)  ", listing.partition("\nOptions:")[0], re.MULTILINE)
    visible = {name for name, command in cli.cli.commands.items() if not command.hidden}
    assert len(listed) == len(visible) and set(listed) == visible
    assert listed.index("build") < listed.index("images") < listed.index("doctor")
    assert "\nOthers:" not in shown.stdout
    assert "--plugin" not in shown.stdout
    assert gear("--version").stdout == f"gear, version {__version__}\n"


def test_help_teaches_a_first_session() -> None:
    """
    Every command in it exists, with the options that it is shown with.
    """
    text = gear("--help").stdout.partition("Make and publish")[0]
    shown = re.findall(r"^ +(?:sudo )?gear ([a-z]+)(.*)$", text, re.MULTILINE)
    assert [name for name, _ in shown][:3] == ["build", "push", "images"]
    for name, rest in shown:
        known = {option for param in cli.cli.commands[name].params for option in param.opts}
        assert {word for word in rest.split() if word.startswith("--")} <= known


@pytest.mark.parametrize(
    "name", [name for name, command in cli.cli.commands.items() if not command.hidden]
)
def test_every_command_has_an_example(name: str) -> None:
    """
    In `gear COMMAND --help` and `gear help COMMAND` alike; its options exist.
    """
    command = cli.cli.commands[name]
    text = command.get_help(click.Context(command, info_name=name))
    options = r"(?:--[a-z]+ \S+ )?"
    examples = re.findall(rf"^ {{4,}}.*\bgear {options}{name}\b(.*)$", text, re.MULTILINE)
    assert examples
    known = {option for param in command.params for option in param.opts}
    for example in examples:
        words = example.partition("|")[0].split()
        assert {word for word in words if word.startswith("-")} <= known


def test_help_for_one_command() -> None:
    """
    The same text both ways; an unknown one is 2 and says where to look.
    """
    assert gear("help", "build").stdout == gear("build", "--help").stdout
    assert gear("help").stdout == gear("--help").stdout
    unknown = gear("help", "nonsense")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "gear help" in unknown.stderr


def test_heavy_libraries_wait_until_they_are_needed() -> None:
    """
    `gear --help` stays quick: no Docker SDK, Flask, rich or llfuse is loaded for it.
    """
    heavy = "{'docker', 'requests', 'flask', 'gunicorn', 'rich', 'llfuse'}"
    code = f"import sys, gear_plugin.cli; print(sorted({heavy} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("[]\n", "")


@pytest.mark.parametrize("name", ["client", "graphdriver"])
def test_the_clusters_settings_are_options_of_a_nodes_daemons(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    They beat the settings; a wrong one names the setting, as anywhere.
    """
    seen: list[Config] = []

    def stop(config: Config) -> None:
        seen.append(config)
        raise NotFound("that is all")

    monkeypatch.setattr(logs, "setup", lambda *_: None)
    monkeypatch.setattr(daemons, "_die_with_parent", lambda: None)
    monkeypatch.setattr("gear_plugin.cli.node.local_server", stop)
    monkeypatch.setattr("gear_plugin.cli.node.Healer", stop)
    config = Config(root=tmp_path, run=tmp_path, manager="a", listen=":1", download_limit=7)
    words = ["--manager", "b:2", "--upload-limit", "50M"]
    result = CliRunner().invoke(cli.cli.commands[name], words, obj=config)
    assert isinstance(result.exception, NotFound), result.output
    (found,) = seen
    assert (found.manager, found.upload_limit) == ("b:2", 50 << 20)
    assert (found.listen, found.download_limit, found.root) == (":1", 7, tmp_path)
    result = CliRunner().invoke(cli.cli.commands[name], ["--upload-limit", "much"], obj=config)
    assert "setting 'upload_limit'" in str(result.exception)
