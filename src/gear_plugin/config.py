"""
Every setting of Gear, in one frozen value.

A command-line flag beats the environment (`GEAR_<FIELD>`) beats the file
(`/etc/gear/gear.toml`, or the one `GEAR_CONFIG` names) beats the default
here.  Unknown keys in the file are errors.  Read once, at the start of a
process; nothing else in Gear reads the environment.

Inside the managed plugin `docker plugin set gear <field>=<value>` sets the
same fields; plugin/config.json declares them without the prefix.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

from gear_plugin.errors import BadConfig

ENV_PREFIX = "GEAR_"
DEFAULT_FILE = Path("/etc/gear/gear.toml")

PLUGIN_DEFAULTS = {"store": "/mnt/store", "catalog": "sqlite:///mnt/store/catalog.sqlite"}
"""What plugin/config.json declares: a host folder, and a file in it."""

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_SIZE = re.compile(r"\s*(\d+)\s*([kmgt]?)(?:i?b)?\s*\Z", re.IGNORECASE)


def _parse_size(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = _SIZE.match(value)
    if not match:
        raise ValueError(f"not a size (such as 512M, 20G, 1T): {value!r}")
    return int(match[1]) * _UNITS[match[2].lower()]


def _absolute(folder: Path) -> Path:
    """Where it is, for processes that work in another folder: daemons stand in /."""
    return folder.absolute()


def _absolute_unless_nfs(store: str) -> str:
    return store if store.startswith("nfs://") else str(_absolute(Path(store)))


Folder = Annotated[Path, AfterValidator(_absolute)]
SizeBytes = Annotated[int, BeforeValidator(_parse_size), Field(ge=0)]
Seconds = Annotated[float, Field(gt=0)]

MountWay = Literal["auto", "direct", "nested", "fuse-tree"]


class Config(BaseModel):
    """
    The settings; every field has a default, a unit in its name or comment,
    and a line in docs/settings.md.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: Folder = Path("/var/lib/gear")
    """Gear's main folder: caches, layers, images, builds."""

    run: Folder = Path("/run/gear")
    """Sockets, process state and private mount points; empty after a reboot."""

    store: Annotated[str, AfterValidator(_absolute_unless_nfs)] = "/var/lib/gear/store"
    """The shared object store: a directory, or `nfs://HOST[:PORT]/EXPORT`."""

    catalog: str = "sqlite:///var/lib/gear/catalog.sqlite"
    """The metadata database: `sqlite:///<absolute path>` or `etcd://<host>[:<port>]`."""

    catalog_timeout_s: Seconds = 15.0
    """Limit of the wait for etcd's answer, or for other users of the file, seconds."""

    cache_limit: SizeBytes = 0
    """Upper bound of the node's cache (public and private), bytes; 0: no bound."""

    mount_way: MountWay = "auto"
    """How Gear images are mounted: `auto` probes the kernel, others force one way."""

    fuse_workers: Annotated[int, Field(ge=2, le=512)] = 64
    """FUSE threads; each missing object that is on its way occupies one."""

    fetch_stall_s: Seconds = 8.0
    """A source that delivers no byte for this long is given up, seconds."""

    fetch_timeout_s: Seconds = 60.0
    """One object's fetch may take this long altogether before EIO, seconds."""

    start_profiles: bool = True
    """Learn what images open when they start, keep it in the store, and fetch it ahead."""

    push_stall_s: Seconds = 120.0
    """`gear push` gives up a store or catalog that does nothing for this long, seconds."""

    watchdog_s: Seconds = 10.0
    """A FUSE daemon that does not answer statfs for this long is killed, seconds."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What goes to stderr (in the plugin: dockerd's log)."""

    insecure_registries: str = ""
    """Registries that may have no proper certificate, or speak plain http: hosts, networks."""

    docker_etc: Folder = Path("/etc/docker")
    """Docker's folder of registries' certificates (`certs.d/`) and its `daemon.json`."""

    docker_config: Folder | None = None
    """The folder of docker's `config.json` with logins; None: DOCKER_CONFIG, or `~/.docker`."""

    manager: str = ""
    """The cluster's manager, `HOST[:PORT]` (2019 if not said); empty: this node is on its own."""

    token: str = ""
    """The cluster's token, as `gear token` prints it."""

    listen: str = "0.0.0.0:2020"
    """In a cluster, where this node's client serves other nodes: `HOST:PORT`."""

    advertise: str = ""
    """Where others reach `listen`, `HOST[:PORT]`; empty: the address that the manager sees."""

    tls_cert: Path | None = None
    """This machine's certificate (PEM); with it `manager` and `client` speak TLS only."""

    tls_key: Path | None = None
    """The key of `tls_cert`."""

    tls_ca: Path | None = None
    """Who signs the others' certificates; with it callers must show one of theirs, too."""

    upload_limit: SizeBytes = 0
    """What this node sends to other nodes, bytes a second; 0: no bound."""

    download_limit: SizeBytes = 0
    """What this node takes from other nodes, bytes a second; 0: no bound."""

    hedge_s: Seconds = 1.0
    """A node that has sent nothing for this long gets company: the next one is asked too."""

    check_s: Seconds = 5.0
    """The manager asks each node this often whether it lives, seconds."""

    docker_host: str | None = None
    """The engine for build and push; None: DOCKER_HOST, or docker's default socket."""

    in_plugin: bool = False
    """Said by `load`, for child processes: these are the managed plugin's settings."""

    def is_own(self, key: Literal["store", "catalog"]) -> bool:
        """
        Whether that is the user's choice, which beats what a cluster names.

        What the plugin declares is none: docker passes it, set or not.
        """
        value = getattr(self, key)
        if self.in_plugin and value == PLUGIN_DEFAULTS[key]:
            return False
        return bool(value != type(self).model_fields[key].default)


def load(
    flags: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    file: Path | None = None,
    bare_names: bool = False,
) -> Config:
    """
    The settings in force: *flags* (None: not given), environment, file, defaults.

    With *bare_names* (inside the managed plugin) a field's own name is read
    from the environment as well, and an empty value means unset: docker
    passes every declared variable, set or not.

    Raises BadConfig: one line that names the setting and where it came from.
    """
    values: dict[str, Any] = {}
    path = file or (Path(environ["GEAR_CONFIG"]) if "GEAR_CONFIG" in environ else None)
    values.update(_from_file(path or DEFAULT_FILE, required=path is not None))
    for field in Config.model_fields:
        names = [ENV_PREFIX + field.upper()] + ([field] if bare_names else [])
        for name in names:
            if environ.get(name, "" if bare_names else None) not in (None, ""):
                values[field] = environ[name]
    values.update({key: value for key, value in (flags or {}).items() if value is not None})
    if bare_names:
        values["in_plugin"] = True
    return _checked(values)


def override(config: Config, flags: Mapping[str, Any]) -> Config:
    """*config* with those *flags* that were given (not None); raises BadConfig as `load`."""
    given = {key: value for key, value in flags.items() if value is not None}
    return _checked({**config.model_dump(), **given}) if given else config


def _checked(values: Mapping[str, Any]) -> Config:
    try:
        return Config(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        known = ", ".join(Config.model_fields)
        hint = f"; known settings: {known}" if first["type"] == "extra_forbidden" else ""
        raise BadConfig(f"setting {where!r}: {first['msg']}{hint}") from error


def misspelt(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """The variables that are no setting but look like one, each with that one."""
    found = []
    for name in sorted(environ):
        lower = name.removeprefix(ENV_PREFIX).lower()
        if name.startswith(ENV_PREFIX) and lower not in {*Config.model_fields, "config"}:
            near = difflib.get_close_matches(lower, Config.model_fields, 1)
            found += [(name, ENV_PREFIX + one.upper()) for one in near]
    return found


def _from_file(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        if required:
            raise BadConfig(f"settings file {path} does not exist") from error
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadConfig(f"settings file {path}: {error}") from error
