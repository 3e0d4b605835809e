"""What an engine says of itself, over the engine's API."""

from __future__ import annotations

import gc
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gear_plugin.errors import EngineUnavailable
from gear_plugin.jobs.engine_facts import PluginFacts, ask_engine
from tests.unit.jobs.test_engine import Api, Reply, api  # noqa: F401 - a fixture

INFO = {
    "Driver": "overlay2",
    "DriverStatus": [["Backing Filesystem", "extfs"]],
    "DockerRootDir": "/srv/docker",
    "ExperimentalBuild": True,
}


def plugin(name: str, *, enabled: bool, description: str, kind: str) -> dict[str, Any]:
    return {
        "Id": name * 3,
        "Name": f"{name}:latest",
        "Enabled": enabled,
        "Config": {"Description": description, "Interface": {"Types": [{"Capability": kind}]}},
        "Settings": {"Env": ["store=/mnt/store", "cache_limit="]},
    }


GEAR = plugin("gear", enabled=True, description="Gear: a storage driver", kind="graphdriver")


def answers(api: Api, info: dict[str, Any], *plugins: dict[str, Any]) -> None:  # noqa: F811
    version = {"Version": "20.10.24+dfsg1", "ApiVersion": "1.41"}
    for path, body in (("version", version), ("info", info), ("plugins", plugins)):
        api.replies[f"GET /{path}"] = Reply(body=json.dumps(body).encode())


def test_an_engine_without_gear(api: Api) -> None:  # noqa: F811
    """
    Version, driver and folders as it tells them; other plugins are not Gear's.
    """
    volume = plugin("vol", enabled=True, description="Gear: volumes", kind="volumedriver")
    other = plugin("zfs", enabled=True, description="ZFS", kind="graphdriver")
    answers(api, INFO, volume, other)
    found = ask_engine(api.host, {}, timeout_s=5)
    assert (found.host, found.version, found.api_version) == (api.host, "20.10.24+dfsg1", "1.41")
    assert (found.major, found.is_experimental, found.driver) == (20, True, "overlay2")
    assert found.driver_status == {"Backing Filesystem": "extfs"}
    assert (found.data_root, found.plugin, found.runs_gear) == (Path("/srv/docker"), None, False)


def test_an_engine_on_gear(api: Api) -> None:  # noqa: F811
    """
    Recognised by what its driver tells, not by its name, which the user chose.
    """
    status = [["Gear Version", "0.1"], ["Mount Way", "nested"]]
    answers(api, {**INFO, "Driver": "mine", "DriverStatus": status}, GEAR)
    found = ask_engine(api.host, {}, timeout_s=5)
    assert found.runs_gear and found.driver_status["Mount Way"] == "nested"
    assert found.plugin == PluginFacts(
        "geargeargear", "gear:latest", True, {"store": "/mnt/store", "cache_limit": ""}
    )


def test_the_enabled_plugin_counts(api: Api) -> None:  # noqa: F811
    """
    Another version of it may be lying about.
    """
    old = plugin("old", enabled=False, description="Gear: a storage driver", kind="graphdriver")
    answers(api, INFO, old, GEAR)
    found = ask_engine(api.host, {}, timeout_s=5).plugin
    assert found is not None and found.name == "gear:latest"


def test_an_engine_may_tell_nothing(api: Api) -> None:  # noqa: F811
    """
    Null where a list would be, types as plain strings: both exist in the wild.
    """
    odd = {**GEAR, "Settings": None}
    odd["Config"] = {**GEAR["Config"], "Interface": {"Types": ["docker.graphdriver/1.0"]}}
    answers(api, {"Driver": "x", "DriverStatus": None}, odd)
    found = ask_engine(api.host, {}, timeout_s=5)
    assert found.plugin is not None and found.plugin.settings == {}
    assert found.driver_status == {}


def _nobody(folder: Path) -> str:
    return f"unix://{folder}/nobody.sock"


def _refused(folder: Path) -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{taken.getsockname()[1]}"


# The SDK does not close a socket that it could not connect.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize(
    ("host", "reason"),
    [(_nobody, "No such file or directory"), (_refused, "Connection refused")],
)
def test_no_engine_is_one_short_line(
    tmp_path: Path, host: Callable[[Path], str], reason: str
) -> None:
    """
    The system's own words, without the three libraries' around them.
    """
    address = host(tmp_path)
    with pytest.raises(EngineUnavailable) as caught:
        ask_engine(address, {}, timeout_s=5)
    assert str(caught.value) == f"no Docker engine answers at {address}: {reason}"
    del caught
    gc.collect()


def test_an_engine_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    """
    It accepts connections, and that is all.
    """
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "d.sock"))
        mute.listen()
        began = time.monotonic()
        with pytest.raises(EngineUnavailable, match="timed out"):
            ask_engine(f"unix://{tmp_path}/d.sock", {}, timeout_s=1)
        assert time.monotonic() - began < 30


def test_a_refusal_is_passed_on(api: Api) -> None:  # noqa: F811
    """
    In the engine's words.
    """
    answers(api, INFO)
    api.replies["GET /info"] = Reply(500, b'{"message": "out of order"}')
    with pytest.raises(EngineUnavailable, match="out of order"):
        ask_engine(api.host, {}, timeout_s=5)
