"""
What a node's client is made of when the settings name a manager.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gear_plugin.cluster import Settings, Token, parse_address
from gear_plugin.config import Config
from gear_plugin.content import DirectoryProfiles, DirectoryStore, ObjectSource
from gear_plugin.content.base import Peers
from gear_plugin.content.calls import Calls
from gear_plugin.content.chosen import ChosenStore
from gear_plugin.content.nfs_address import is_nfs
from gear_plugin.content.peer import HomesSource, ManagerSource
from gear_plugin.content.rate import RateLimit
from gear_plugin.content.starts import Profiles
from gear_plugin.errors import BadConfig, BadRequest, StorageUnavailable
from gear_plugin.jobs.joined import Joined
from gear_plugin.jobs.store_setting import Mount, StoreSetting
from gear_plugin.jobs.tls import Tls

MANAGER_PORT = 2019
_SHARE_OF_STALL = 0.75
"""A node is given up a little before the fetch gives all of them up, so that it is set aside."""


@dataclass(frozen=True, slots=True)
class Membership:
    """The parts of the client that a cluster adds or replaces."""

    joined: Joined
    peers: Peers
    sources: list[ObjectSource]
    """The store and the manager."""
    profiles: Profiles


def membership(config: Config, mount: Mount) -> Membership:
    """
    The parts, nothing of them started; *mount* is for a store on NFS.

    Raises BadConfig (settings manager, token, advertise, listen, tls_*) and
    StorageUnavailable (the main folder cannot be written).
    """
    if not config.token:
        raise BadConfig(
            "setting 'manager' wants 'token' too; `gear token` on the manager's machine prints it"
        )
    token = Token.parse(config.token)
    manager = with_port("manager", config.manager, MANAGER_PORT)
    tls = Tls.of(config.tls_cert, config.tls_key, config.tls_ca)
    context = tls.client_context() if tls is not None else None
    stall_s = config.fetch_stall_s * _SHARE_OF_STALL
    to_manager, to_nodes = (Calls(token, tls=context, stall_s=stall_s) for _ in range(2))
    store, profiles, on_settings = _store(config, mount)
    try:
        joined = Joined(
            config.root,
            token,
            to_manager,
            manager,
            _address(config),
            on_settings=on_settings,
            is_served=lambda: _is_served(config.listen),
        )
    except OSError as error:
        raise StorageUnavailable(
            f"{config.root} cannot keep this node's id: {error.strerror}"
        ) from error
    peers = HomesSource(
        to_nodes,
        joined.members,
        joined.node,
        hedge_s=config.hedge_s,
        limit=RateLimit(config.download_limit),
    )
    return Membership(joined, peers, [store, ManagerSource(to_manager, manager)], profiles)


def with_port(setting: str, value: str, port: int) -> str:
    """*value* (`HOST` or `HOST:PORT`) with a port; raises BadConfig."""
    has_port = value.rpartition(":")[2].isdigit() and (value.count(":") == 1 or "]:" in value)
    try:
        address = parse_address(value if has_port else f"{value}:{port}")
    except BadRequest as error:
        raise BadConfig(f"setting {setting!r}: not HOST or HOST:PORT: {value!r:.80}") from error
    if address.startswith(":"):
        raise BadConfig(f"setting {setting!r}: no host in {value!r}")
    return address


def _address(config: Config) -> str:
    """What the manager is told: where the others reach this node's port."""
    try:
        port = int(parse_address(config.listen).rpartition(":")[2])
    except BadRequest as error:
        raise BadConfig(f"setting 'listen': not HOST:PORT: {config.listen!r:.80}") from error
    if config.advertise:
        return with_port("advertise", config.advertise, port)
    return f":{port}"


def _is_served(listen: str) -> bool:
    """Whether this machine's own port takes connections."""
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    here = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    try:
        socket.create_connection((here, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def own_store(config: Config, mount: Mount) -> tuple[ObjectSource, Profiles]:
    """The store that the node's own setting names; on NFS it is mounted, sooner or later."""
    if not is_nfs(config.store):
        path = Path(config.store)
        return DirectoryStore(path), DirectoryProfiles(path)
    chosen = ChosenStore()
    _setting(config, chosen, mount).apply(Settings(config.store))
    return chosen, chosen


def _store(
    config: Config, mount: Mount
) -> tuple[ObjectSource, Profiles, Callable[[Settings], None]]:
    """The node's own store if one is set, else the one that the cluster names."""
    if config.store != Config.model_fields["store"].default:
        return *own_store(config, mount), lambda _settings: None
    chosen = ChosenStore()
    return chosen, chosen, _setting(config, chosen, mount).apply


def _setting(config: Config, chosen: ChosenStore, mount: Mount) -> StoreSetting:
    return StoreSetting(chosen, Path(config.store), config.root / "nfs", mount)
