"""docs/cli.md says what the command does."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import click

from gear_plugin import cli
from gear_plugin.errors import GearError
from gear_plugin.jobs import BuildResult, PushResult

TEXT = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()


def section(title: str) -> str:
    return TEXT.split(f"\n## {title}\n")[1].partition("\n## ")[0]


def test_every_exit_code_is_documented() -> None:
    """
    With the name of its error; no code that does not exist.
    """
    rows = re.findall(r"^\| (\d+) \| (\w+)", section("Exit codes"), re.MULTILINE)
    documented = {int(code): word for code, word in rows}
    for kind, code in cli.EXIT_CODES:
        assert documented[code] == ("another" if kind is GearError else kind.__name__)
    codes = {code for _, code in cli.EXIT_CODES}
    assert set(documented) == codes | {0, cli.BUG, cli.INTERRUPTED}


def test_every_command_and_global_option_is_documented() -> None:
    """
    What help shows, and nothing else.
    """
    shown = {name for name, command in cli.cli.commands.items() if not command.hidden}
    overview = TEXT.partition("\n## ")[0]
    assert set(re.findall(r"^\| `gear (\w+)", overview, re.MULTILINE)) == shown
    options = {
        option.opts[0]
        for option in cli.cli.params
        if isinstance(option, click.Option) and not option.hidden
    }
    documented = re.findall(r"^\| `(--[\w-]+)", section("Global options"), re.MULTILINE)
    assert set(documented) == options - {"--version"}


def test_every_field_of_a_result_is_documented() -> None:
    """
    In the order in which `--json` prints them.
    """
    for title, result in (("gear build", BuildResult), ("gear push", PushResult)):
        listed = section(title).split("`--json`:")[1].partition("\n\n")[0]
        names = [field.name for field in dataclasses.fields(result)]
        assert [word for word in re.findall(r"`(\w+)`", listed) if word in names] == names
