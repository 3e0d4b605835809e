"""docs/cli.md says what the command does."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import click
import pytest

from gear_plugin import cli
from gear_plugin.cli import listing
from gear_plugin.errors import GearError
from gear_plugin.image import Tree
from gear_plugin.jobs import BuildResult, PushResult
from gear_plugin.jobs.collect import Collection
from gear_plugin.jobs.doctor import Finding, Status
from gear_plugin.jobs.inspect import ImageReport
from gear_plugin.jobs.listing import ListedImage
from gear_plugin.jobs.remove import Removed
from gear_plugin.jobs.restore import RestoreResult
from gear_plugin.jobs.verify import Problem, Verification

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


VISIBLE = sorted(name for name, command in cli.cli.commands.items() if not command.hidden)


@pytest.mark.parametrize("name", VISIBLE)
def test_every_command_has_a_section(name: str) -> None:
    """
    With an example or synopsis, and every option of it under both its names.
    """
    text = section(f"gear {name}")
    assert re.search(rf"^    (?:sudo )?gear (?:--\w+ \S+ )?{name}\b", text, re.MULTILINE)
    for param in cli.cli.commands[name].params:
        if isinstance(param, click.Option) and not param.hidden:
            for option in param.opts:
                assert re.search(rf"{re.escape(option)}\b", text), f"{option} is not documented"


@pytest.mark.parametrize("name", VISIBLE)
def test_no_section_has_an_option_that_is_not_there(name: str) -> None:
    """
    Tables and synopses of a section name its command's own options alone.
    """
    text = section(f"gear {name}")
    known = {option for param in cli.cli.commands[name].params for option in param.opts}
    known |= {option for param in cli.cli.params for option in param.opts} | {"--help"}
    rows = [line for line in text.splitlines() if line.startswith("| `-")]
    synopses = [line for line in text.splitlines() if line.startswith(f"    gear {name}")]
    ours = (re.split(r"\| (?:jq|grep)\b", line)[0] for line in synopses)
    shown = re.findall(r"(?<![\w-])--?[a-z][\w-]*", "\n".join(ours))
    shown += re.findall(r"`(--?[a-z][\w-]*)", "\n".join(row.split("|")[1] for row in rows))
    assert set(shown) <= known


def test_every_field_of_a_result_is_documented() -> None:
    """
    In the order in which `--json` prints them.
    """
    results: tuple[tuple[str, type[Any]], ...] = (
        ("gear build", BuildResult),
        ("gear push", PushResult),
        ("gear images", ListedImage),
        ("gear inspect", ImageReport),
        ("gear restore", RestoreResult),
        ("gear rm", Removed),
        ("gear gc", Collection),
        ("gear verify", Verification),
        ("gear doctor", Finding),
    )
    for title, result in results:
        listed = section(title).split("`--json`:")[1].partition("\n\n")[0]
        names = [field.name for field in dataclasses.fields(result)]
        found = dict.fromkeys(word for word in re.findall(r"`(\w+)`", listed) if word in names)
        assert list(found) == names, title
    listed = section("gear verify").split("`problems` is a list")[1].partition("\n\n")[0]
    names = [field.name for field in dataclasses.fields(Problem)]
    assert list(dict.fromkeys(w for w in re.findall(r"`(\w+)`", listed) if w in names)) == names
    entry = next(listing.entries(Tree()))
    text = section("gear inspect").split("`--files --json`")[1]
    found = dict.fromkeys(word for word in re.findall(r"`(\w+)`", text) if word in entry)
    assert list(found) == list(entry)


def test_every_status_of_doctor_is_documented() -> None:
    """
    And what each means for the exit code.
    """
    rows = re.findall(r"^\| `(\w+)` \| ", section("gear doctor"), re.MULTILINE)
    assert rows[: len(Status)] == [str(status) for status in Status]


def test_help_and_page_name_the_same_places() -> None:
    """
    Every choice of `--from`.
    """
    for name in ("inspect", "restore"):
        (option,) = (p for p in cli.cli.commands[name].params if "--from" in p.opts)
        assert isinstance(option.type, click.Choice)
        assert all(f"`{place}`" in section("gear inspect") for place in option.type.choices)
