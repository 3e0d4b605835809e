"""
`gear manager`, and what is asked on its machine: `gear token`, `gear nodes`.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import platform
import secrets
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gear_plugin import log as logs
from gear_plugin.cli import clustered, output, wiring
from gear_plugin.cluster import Settings, Token, parse_address
from gear_plugin.config import Config
from gear_plugin.durable import write_once
from gear_plugin.errors import BadConfig, BadRequest, GearError

if TYPE_CHECKING:
    from flask import Flask

    from gear_plugin.api.metrics import CheckTimes
    from gear_plugin.catalog import Roster
    from gear_plugin.jobs.lookout import Lookout
    from gear_plugin.jobs.tls import Tls

log = logging.getLogger(__name__)

_WAITING = 1024
"""Nodes that wait for news at once, a thread each; one more is answered at once."""
_THREADS = _WAITING + 128
"""And some for all else: uploads, downloads and calls of the catalog have gates of their own."""
_CONNECTIONS = 4096
_STORE_STALL_S = 15.0
_ASK_TIMEOUT_S = 2.0


@click.command()
@click.option("--listen", default="0.0.0.0:2019", show_default=True, help="HOST:PORT to listen on.")
@click.option(
    "--store-for-nodes",
    help="The store as nodes find it: nfs://HOST/EXPORT or a directory; by default as here.",
)
@click.option(
    "--catalog-for-nodes",
    help="The catalog as nodes find it: etcd://HOST; by default this one, if it is in etcd.",
)
@click.pass_obj
def manager(
    config: Config, listen: str, store_for_nodes: str | None, catalog_for_nodes: str | None
) -> None:
    """
    Run a cluster's manager in the foreground.

    It tells every node that joins where store and catalog are and who else is
    there, checks who lives, and is a way to the store for nodes without one.
    All it knows is in the catalog: with etcd run as many as you like.

    \b
        gear --catalog etcd://10.0.0.8 --store /mnt/gear manager --store-for-nodes nfs://10.0.0.9/gear
        gear token                       # what a node needs to join
    """
    from gear_plugin.api.connections import Limits
    from gear_plugin.api.serve import check_free, serve
    from gear_plugin.jobs.tls import Tls

    logs.setup(config.log_level, "manager")
    work = _Work(
        config,
        _address(listen),
        Settings(
            config.store if store_for_nodes is None else store_for_nodes,
            _shared(config.catalog) if catalog_for_nodes is None else catalog_for_nodes,
        ),
        Tls.of(config.tls_cert, config.tls_key, config.tls_ca),
    )
    check_free(listen)
    cluster = wiring.ask_roster(config, lambda roster: roster.identity().cluster)
    _see_store(config)
    serve(
        work.app,
        listen,
        threads=_THREADS,
        log_level=config.log_level,
        certfile=config.tls_cert,
        keyfile=config.tls_key,
        ca_certs=config.tls_ca,
        limits=Limits(connections=_CONNECTIONS),
        listening=lambda: _greet(cluster, listen, work.settings),
        ending=work.end,
    )


@click.command()
@click.pass_obj
def token(config: Config) -> None:
    """
    Print the cluster's token, which lets nodes and people in.

    To be run where the catalog can be reached, as on a manager's machine.
    Whoever has the token may read and write the cluster's objects: pass it on
    as you would a password.

    \b
        gear token
        docker plugin set gear manager=HOST:2019 token=$(gear token)
    """
    print(wiring.ask_roster(config, lambda roster: roster.identity().text()))


@click.command()
@output.as_json
@click.pass_obj
def nodes(config: Config, as_json: bool) -> None:
    """
    List the nodes of the cluster, and whether they answer.

    To be run on a manager's machine, or anywhere with the settings `manager` and
    `token`.

    \b
        gear nodes
        gear nodes --json
    """
    if config.manager:
        _, members = clustered.ask(config)
    else:
        members = wiring.ask_roster(config, lambda roster: roster.members())
    if as_json:
        output.print_json(members.as_json())
        return
    output.print_table(
        ("NODE", "ADDRESS", "STATE"),
        [(node.node, node.address, "live" if node.is_live else "dead") for node in members.nodes],
    )


@dataclass(slots=True)
class _Work:
    """What the worker process of a manager does."""

    config: Config
    listen: str
    settings: Settings
    tls: Tls | None
    _stopped: threading.Event = field(default_factory=threading.Event)
    _lookout: Lookout | None = None

    def end(self) -> None:
        """No more checks, and nobody who waits for news holds the process up."""
        self._stopped.set()
        if self._lookout is not None:
            self._lookout.stop()

    def app(self) -> Flask:
        """The app, and the threads behind it: one that looks for news, one that checks nodes."""
        from gear_plugin.api.manager import STORE_PLACES, Manager, manager_app
        from gear_plugin.api.metrics import CheckTimes
        from gear_plugin.cli.membership import keep_mounted, mount_store
        from gear_plugin.content import DirectoryStore, Relay
        from gear_plugin.content.nfs_address import store_folder
        from gear_plugin.jobs.lookout import Lookout

        config = self.config
        keep_mounted(config, mount_store)
        roster = wiring.roster(config)
        token, times = roster.identity(), CheckTimes()
        lookout = Lookout(roster, limit=_WAITING)
        lookout.start()
        self._lookout = lookout
        store = DirectoryStore(store_folder(config.store, config.root))
        made = Manager(
            token=token,
            settings=self.settings,
            roster=roster,
            lookout=lookout,
            catalog=wiring.catalog(config),
            relay=Relay(store, stall_s=_STORE_STALL_S, workers=STORE_PLACES),
            incoming=config.root / "manager",
            check_times=times,
        )
        self._check(roster, token, lookout, times)
        return manager_app(made)

    def _check(self, roster: Roster, token: Token, lookout: Lookout, times: CheckTimes) -> None:
        """Start the checks of nodes; they end with `end`."""
        from gear_plugin.jobs.checks import Checks
        from gear_plugin.jobs.node_info import NodeInfo

        context = self.tls.client_context() if self.tls else None
        checks = Checks(
            roster,
            manager_id(self.config.root, self.listen),
            NodeInfo(token, timeout_s=_ASK_TIMEOUT_S, tls=context).ask,
            changed=lookout.offer,
            observe=times.observe,
        )
        threading.Thread(
            target=checks.run,
            args=(self._stopped, self.config.check_s),
            name="checks",
            daemon=True,
        ).start()


def manager_id(root: Path, listen: str) -> str:
    """
    Who this manager is to the others, 32 hex digits: the same after a restart.

    So the catalog keeps one report of each, not one of each start.  Two on one
    machine listen on different ports.
    """
    file = root / "manager-id"
    with contextlib.suppress(FileExistsError), write_once(file, replace=False) as new:
        new.write(secrets.token_hex(16).encode())
    return hashlib.sha256(file.read_bytes() + listen.encode()).hexdigest()[:32]


def _address(listen: str) -> str:
    try:
        address = parse_address(listen)
    except BadRequest as error:
        raise BadConfig(f"--listen: not HOST:PORT: {listen!r:.80}") from error
    return address


def _shared(catalog: str) -> str:
    """*catalog*, if others can reach it."""
    return catalog if catalog.startswith(("etcd:", "etcds:")) else ""


def _see_store(config: Config) -> None:
    """
    Have the store there, or say what is wrong with it; never waits long.

    A manager without its store still holds the cluster together.
    """
    from gear_plugin.jobs.apart import call_apart

    outcome = call_apart(
        lambda: str(wiring.store(config, create=False).name), timeout_s=_STORE_STALL_S
    )
    if isinstance(outcome.error, GearError):
        log.warning("objects cannot be handed out or taken in yet: %s", outcome.error)
    elif outcome.error is not None:
        raise outcome.error
    elif outcome.trouble:
        log.warning("store %s: %s; objects wait for it", config.store, outcome.trouble)


def _greet(cluster: str, listen: str, settings: Settings) -> None:
    """What a person wants to know who has just started a manager."""
    host, _, port = listen.rpartition(":")
    here = platform.node() if host in ("", "0.0.0.0", "[::]") else host  # noqa: S104 - compared
    lines = (
        f"The manager of cluster {cluster} listens on {listen}.",
        f"  nodes are given   store {settings.store or '(their own setting)'},"
        f" catalog {settings.catalog or '(their own setting)'}",
        "  the token         gear token",
        f"  on each node      docker plugin set gear manager={here}:{port} token=TOKEN",
        f"  without docker    GEAR_MANAGER={here}:{port} GEAR_TOKEN=TOKEN gear client",
        "  who is there      gear nodes",
    )
    print("\n".join(lines), file=sys.stderr, flush=True)
