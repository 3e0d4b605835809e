"""
The Dockerfile beside an index archive, so that anyone can see and rebuild
what a Gear image is.

`docker build` of it gives the same `.gear/` files, not the same image: docker
packs what it ADDs anew, so the layer's digest differs, and a Dockerfile cannot
express every configuration (a line break in a value, an environment without
PATH).  So `gear build` loads an archive made from the configuration itself.
Source: moby builder/dockerfile (v20.10.24), and its buildkit parser.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any


def text(config: dict[str, Any], archive: str) -> str:
    """
    The Dockerfile for the image configuration *config*, adding the tar *archive*.

    What cannot be written as an instruction is left as a comment.
    """
    lines = ["FROM scratch", f"ADD {archive} /"]
    for instruction in _instructions(config):
        if "\n" in instruction:
            escaped = instruction.replace("\n", "\\n")
            lines.append(f"# not expressible, it has a line break: {escaped}")
        else:
            lines.append(instruction)
    return "\n".join(lines) + "\n"


def _instructions(image: dict[str, Any]) -> Iterator[str]:
    config = image.get("config") or {}
    if image.get("author"):
        yield f"MAINTAINER {image['author']}"
    for entry in config.get("Env") or []:
        key, _, value = str(entry).partition("=")
        yield f"ENV {key}={_quoted(value)}"
    for key, value in sorted((config.get("Labels") or {}).items()):
        yield f"LABEL {_quoted(key)}={_quoted(value)}"
    for port in sorted(config.get("ExposedPorts") or {}):
        yield f"EXPOSE {port}"
    for volume in sorted(config.get("Volumes") or {}):
        yield f"VOLUME {json.dumps([volume.replace('$', _DOLLAR)])}"
    for word, key in (("WORKDIR", "WorkingDir"), ("USER", "User"), ("STOPSIGNAL", "StopSignal")):
        if config.get(key):
            yield f"{word} {str(config[key]).replace('$', _DOLLAR)}"
    if config.get("Shell"):
        yield f"SHELL {json.dumps(config['Shell'])}"
    if (config.get("Healthcheck") or {}).get("Test"):
        yield f"HEALTHCHECK {_healthcheck(config['Healthcheck'])}"
    for word, key in (("ENTRYPOINT", "Entrypoint"), ("CMD", "Cmd")):
        if config.get(key):
            yield f"{word} {json.dumps(config[key])}"
    for trigger in config.get("OnBuild") or []:
        yield f"ONBUILD {trigger}"


_DOLLAR = "\\$"
_DURATIONS = (
    ("Interval", "interval"),
    ("Timeout", "timeout"),
    ("StartPeriod", "start-period"),
    ("StartInterval", "start-interval"),
)


def _healthcheck(check: dict[str, Any]) -> str:
    test = [str(word) for word in check["Test"]]
    if test[0] == "NONE":
        return "NONE"
    options = [f"--{option}={check[key]}ns" for key, option in _DURATIONS if check.get(key)]
    if check.get("Retries"):
        options.append(f"--retries={check['Retries']}")
    command = test[1] if test[0] == "CMD-SHELL" and len(test) > 1 else json.dumps(test[1:])
    return " ".join([*options, "CMD", command])


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", _DOLLAR)
    return f'"{escaped}"'
