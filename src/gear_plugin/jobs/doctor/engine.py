"""
The Docker engine: whether it answers, and what it has to do with Gear.
"""

from __future__ import annotations

from collections.abc import Iterator

from gear_plugin.jobs.doctor.finding import Finding, ok, warn
from gear_plugin.jobs.engine_facts import EngineFacts

INSTALL = "docker plugin install --grant-all-permissions --alias gear gear/graphdriver"
_OLDEST, _NEEDS_VARIABLE = 20, 27
_VARIABLE = "DOCKERD_DEPRECATED_GRAPHDRIVER_PLUGINS=1"


def check_engine(engine: EngineFacts) -> Iterator[Finding]:
    """Version, plugins, storage driver."""
    version = f"Docker {engine.version} (API {engine.api_version}) at {engine.host}"
    if 0 < engine.major < _OLDEST:
        yield warn("Docker engine", version, "Gear is tested with 20.10 and later")
    else:
        yield ok("Docker engine", version)
    yield _graphdriver_plugins(engine)
    yield _plugin(engine)
    yield _driver(engine)


def _graphdriver_plugins(engine: EngineFacts) -> Finding:
    check = "driver plugins"
    if engine.runs_gear:
        return ok(check, "this engine has one loaded")
    if engine.major > _NEEDS_VARIABLE:
        return warn(
            check,
            f"Docker {engine.major} has none any more (removed in 28)",
            "run Gear images on Docker 20.10 to 27, or with `gear fs`; "
            "build, push and restore work with this engine",
        )
    if engine.major == _NEEDS_VARIABLE:
        return warn(
            check,
            "Docker 27 loads them only when told to",
            f"start dockerd with {_VARIABLE} in its environment",
        )
    if engine.is_experimental:
        return ok(check, "this engine loads them (--experimental)")
    return warn(
        check,
        f"Docker {engine.version} loads them only with --experimental",
        'start dockerd with --experimental, or set "experimental": true in daemon.json',
    )


def _plugin(engine: EngineFacts) -> Finding:
    check, plugin = "Gear plugin", engine.plugin
    if plugin is None:
        if engine.runs_gear:
            return ok(check, "not installed; the driver runs outside a plugin")
        return warn(check, "not installed", f"to run Gear images here: {INSTALL}")
    if plugin.is_enabled:
        return ok(check, f"{plugin.name} is installed and enabled")
    return warn(
        check, f"{plugin.name} is installed but disabled", f"docker plugin enable {plugin.name}"
    )


def _driver(engine: EngineFacts) -> Finding:
    check, status = "storage driver", engine.driver_status
    if engine.runs_gear:
        way, images = status.get("Mount Way", "unknown"), status.get("Gear Images", "?")
        version = status.get("Gear Version")
        return ok(check, f"{engine.driver} (Gear {version}), mounts {way}, {images} Gear images")
    name = engine.plugin.name.removesuffix(":latest") if engine.plugin else "gear"
    return warn(
        check,
        f"{engine.driver}: builds and pushes Gear images, but cannot run them",
        f"to run them: dockerd --experimental --storage-driver {name}",
    )
