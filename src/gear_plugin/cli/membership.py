"""
What a node's client is made of when the settings name a manager.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from gear_plugin.cli import clustered
from gear_plugin.cluster import Settings, parse_address
from gear_plugin.config import Config
from gear_plugin.content import DirectoryProfiles, DirectoryStore, ObjectSource
from gear_plugin.content.base import Peers
from gear_plugin.content.chosen import ChosenStore
from gear_plugin.content.nfs_address import NfsAddress, is_nfs
from gear_plugin.content.peer import HomesSource, ManagerSource
from gear_plugin.content.rate import RateLimit
from gear_plugin.content.starts import Profiles
from gear_plugin.errors import BadConfig, BadRequest, StorageUnavailable
from gear_plugin.jobs.joined import Joined
from gear_plugin.jobs.nfs_mount import ensure_mounted
from gear_plugin.jobs.store_setting import Mount, StoreSetting

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
    token, manager = clustered.token_of(config), clustered.manager_address(config)
    stall_s = config.fetch_stall_s * _SHARE_OF_STALL
    to_manager, to_nodes = (clustered.calls(config, token, stall_s=stall_s) for _ in range(2))
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


def _address(config: Config) -> str:
    """What the manager is told: where the others reach this node's port."""
    try:
        port = int(parse_address(config.listen).rpartition(":")[2])
    except BadRequest as error:
        raise BadConfig(f"setting 'listen': not HOST:PORT: {config.listen!r:.80}") from error
    if config.advertise:
        return clustered.with_port("advertise", config.advertise, port)
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


def mount_store(address: str, target: Path, timeout_s: float) -> None:
    """Mount a store on NFS, to be written too; a `Mount`."""
    ensure_mounted(NfsAddress.parse(address), target, timeout_s, read_only=False)


def keep_mounted(config: Config, mount: Mount) -> None:
    """Have the settings' store, if it is on NFS, mounted for as long as this process lives."""
    if is_nfs(config.store):
        _setting(config, ChosenStore(), mount).apply(Settings(config.store))


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
    if config.is_own("store"):
        return *own_store(config, mount), lambda _settings: None
    chosen = ChosenStore()
    setting = _setting(config, chosen, mount)

    def apply(settings: Settings) -> None:
        setting.apply(replace(settings, store=clustered.with_settings(config, settings).store))

    return chosen, chosen, apply


def _setting(config: Config, chosen: ChosenStore, mount: Mount) -> StoreSetting:
    return StoreSetting(chosen, Path(config.store), config.root / "nfs", mount)
