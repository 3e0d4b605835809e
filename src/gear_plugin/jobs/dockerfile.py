"""
The Dockerfile beside an index archive, so that anyone can see and rebuild
what a Gear image is.

A Dockerfile cannot express every configuration exactly (a label with odd
quoting, a second ONBUILD form); the image that `gear build` loads is made from
the configuration itself and has the same layer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any


def text(config: dict[str, Any], archive: str) -> str:
    """The Dockerfile for the image configuration *config*, adding the tar *archive*."""
    return "\n".join(["FROM scratch", f"ADD {archive} /", *_instructions(config)]) + "\n"


def _instructions(image: dict[str, Any]) -> Iterator[str]:
    config = image.get("config") or {}
    for entry in config.get("Env") or []:
        key, _, value = str(entry).partition("=")
        yield f"ENV {key}={_quoted(value)}"
    for key, value in sorted((config.get("Labels") or {}).items()):
        yield f"LABEL {_quoted(key)}={_quoted(value)}"
    for port in sorted(config.get("ExposedPorts") or {}):
        yield f"EXPOSE {port}"
    for volume in sorted(config.get("Volumes") or {}):
        yield f"VOLUME {json.dumps([volume])}"
    if config.get("WorkingDir"):
        yield f"WORKDIR {config['WorkingDir']}"
    if config.get("User"):
        yield f"USER {config['User']}"
    if config.get("StopSignal"):
        yield f"STOPSIGNAL {config['StopSignal']}"
    if config.get("Shell"):
        yield f"SHELL {json.dumps(config['Shell'])}"
    if config.get("Healthcheck"):
        yield f"HEALTHCHECK {_healthcheck(config['Healthcheck'])}"
    for word, key in (("ENTRYPOINT", "Entrypoint"), ("CMD", "Cmd")):
        if config.get(key):
            yield f"{word} {json.dumps(config[key])}"
    for trigger in config.get("OnBuild") or []:
        yield f"ONBUILD {trigger}"


def _healthcheck(check: dict[str, Any]) -> str:
    test = [str(word) for word in check.get("Test") or []]
    if test[:1] == ["NONE"]:
        return "NONE"
    names = (("Interval", "interval"), ("Timeout", "timeout"), ("StartPeriod", "start-period"))
    options = [f"--{option}={check[key]}ns" for key, option in names if check.get(key)]
    if check.get("Retries"):
        options.append(f"--retries={check['Retries']}")
    command = test[1] if test[:1] == ["CMD-SHELL"] and len(test) > 1 else json.dumps(test[1:])
    return " ".join([*options, "CMD", command])


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'"{escaped}"'
