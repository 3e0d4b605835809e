"""`gear doctor`: what is wrong on this machine, and what to do."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from gear_plugin.cli import clustered, output, wiring
from gear_plugin.config import Config
from gear_plugin.errors import BadName, GearError
from gear_plugin.names import ImageId

if TYPE_CHECKING:
    from gear_plugin.jobs.doctor import Finding

_COLOURS = {"ok": "green", "warn": "yellow", "fix": "red", "skip": "cyan"}
BROKEN = 1


@click.command()
@click.option(
    "--registry", metavar="HOST|IMAGE", help="Look at this registry too, or at an image's."
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0.1),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long whatever does not answer is waited for.",
)
@output.as_json
@click.pass_obj
def doctor(config: Config, registry: str | None, timeout_s: float, as_json: bool) -> None:
    """
    Say what is wrong on this machine, and what to do about it.

    One line a check: ok, warn (works, but not as well as it could), fix
    (broken), skip (could not be looked at), each with what to do.  Ends with 1
    when something is broken.  Best run as root, which alone can try mounts.

    \b
        sudo gear doctor
        gear doctor --registry registry.example:5000
        gear doctor --json | jq '.[] | select(.status == "fix")'
    """
    from gear_plugin.jobs.doctor import Patient, Status, diagnose

    there = config
    with contextlib.suppress(GearError):  # a finding says why
        there = clustered.in_cluster(config, needs_catalog=False)
    patient = Patient(
        there,
        config.docker_host or os.environ.get("DOCKER_HOST"),
        os.environ,
        lambda: wiring.catalog(there),
        _registry(registry),
        (lambda: clustered.ask(config)) if config.manager else None,
    )
    findings = diagnose(patient, timeout_s=timeout_s)
    if as_json:
        output.print_json([asdict(finding) for finding in findings])
    else:
        _print(findings)
    if any(finding.status is Status.FIX for finding in findings):
        sys.exit(BROKEN)


def _registry(text: str | None) -> str | None:
    """The registry's host; of an image's name, the part before the first slash."""
    if text is None or "/" not in text:
        return text
    host = ImageId.parse(text).name.partition("/")[0]
    if "." not in host and ":" not in host and host != "localhost":
        raise BadName(f"{text} names no registry (HOST[:PORT]/NAME)")
    return host


def _print(findings: Sequence[Finding]) -> None:
    width = max(len(finding.check) for finding in findings)
    has_colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for finding in findings:
        status = finding.status.ljust(4)
        if has_colours:
            status = click.style(status, fg=_COLOURS[finding.status], bold=True)
        remedy = f" -> {finding.remedy}" if finding.remedy else ""
        print(f"{status}  {finding.check.ljust(width)}  {finding.detail}{remedy}")
