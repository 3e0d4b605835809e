"""
The store and the catalog that a command works on when the settings name a manager.

They are those that the cluster names, so that `gear push` on any machine puts an
image where every node finds it.  A store or catalog of the settings beats them.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from gear_plugin.cluster import Members, Settings, Token, parse_address
from gear_plugin.config import Config
from gear_plugin.content.nfs_address import is_nfs
from gear_plugin.errors import BadConfig, BadRequest, SourceUnavailable, Unsupported

if TYPE_CHECKING:
    from gear_plugin.content.calls import Calls

MANAGER_PORT = 2019
_CONNECT_S, _ANSWER_S = 3.0, 5.0
_NAMED: tuple[Literal["store", "catalog"], ...] = ("store", "catalog")


def pass_config(command: Callable[..., None]) -> Callable[..., None]:
    """As `click.pass_obj`, for commands that need the catalog: the settings are `in_cluster`."""
    return _pass(command, needs_catalog=True)


def pass_store(command: Callable[..., None]) -> Callable[..., None]:
    """The same for commands that do without a catalog."""
    return _pass(command, needs_catalog=False)


def in_cluster(config: Config, *, needs_catalog: bool = True) -> Config:
    """
    *config* with the store and the catalog that its manager names, or, if that
    does not answer, named when this machine's node last joined.

    Raises BadConfig, AccessDenied, SourceUnavailable (neither is known), and
    Unsupported, with *needs_catalog*: the catalog cannot be had from here.
    """
    if not config.manager or all(config.is_own(key) for key in _NAMED):
        return config
    try:
        settings, _ = ask(config)
    except SourceUnavailable as error:
        told = remembered(config.root)
        if told is None:
            raise SourceUnavailable(
                f"{error}; start the manager, or set --store and --catalog"
            ) from error
        print(f"gear: {error}; going on with what it said before", file=sys.stderr)
        settings = told
    there = with_settings(config, settings)
    if needs_catalog:
        check_catalog(there, settings)
    return there


def with_settings(config: Config, settings: Settings) -> Config:
    """
    *config* with the store and the catalog of *settings*, where it has none of its own.

    A folder that the cluster names is one of the host.  Inside the plugin it is
    what `store_dir` shows there, if anything.
    """
    changes = {}
    is_visible = is_nfs(settings.store) or not config.in_plugin
    if settings.store and is_visible and not config.is_own("store"):
        changes["store"] = settings.store
    if settings.catalog and not config.is_own("catalog"):
        changes["catalog"] = settings.catalog
    return config.model_copy(update=changes)


def check_catalog(there: Config, settings: Settings) -> None:
    """
    Raise Unsupported if the store is the cluster's and the catalog is not.

    What is pushed so is in no catalog that the cluster collects garbage by, and
    collecting it by another would remove what all others have pushed.
    """
    has_its_store = bool(settings.store) and there.store == settings.store
    if has_its_store and not settings.catalog and not there.is_own("catalog"):
        raise Unsupported(
            "the cluster's catalog is a file on its manager's machine, so this works only "
            "there; a manager whose catalog is in etcd, or --catalog, makes it work here"
        )


def remembered(root: Path) -> Settings | None:
    """What the manager said when the node in *root* last joined; None: it never did."""
    with contextlib.suppress(OSError, ValueError, BadRequest):
        found = json.loads((root / "cluster.json").read_bytes())
        if isinstance(found, dict):
            return Settings.from_json(found.get("settings"))
    return None


def token_of(config: Config) -> Token:
    """The cluster's token, in the settings; raises BadConfig."""
    if not config.token:
        raise BadConfig(
            "setting 'manager' wants 'token' too; `gear token` on the manager's machine prints it"
        )
    return Token.parse(config.token)


def manager_address(config: Config) -> str:
    """`HOST:PORT` of the setting `manager`; raises BadConfig."""
    return with_port("manager", config.manager, MANAGER_PORT)


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


def calls(config: Config, token: Token, **limits: float) -> Calls:
    """Calls to the cluster's machines, with TLS if it is set; raises BadConfig."""
    from gear_plugin.content.calls import Calls
    from gear_plugin.jobs.tls import Tls

    tls = Tls.of(config.tls_cert, config.tls_key, config.tls_ca)
    return Calls(token, tls=tls.client_context() if tls is not None else None, **limits)


def ask(config: Config) -> tuple[Settings, Members]:
    """
    What the manager says of the cluster.

    Raises BadConfig, SourceUnavailable, and what the manager answers.
    """
    limits = {"connect_s": _CONNECT_S, "stall_s": _ANSWER_S}
    address = manager_address(config)
    with contextlib.closing(calls(config, token_of(config), **limits)) as manager:
        settings = Settings.from_json(manager.ask("GET", address, "/settings").get("settings"))
        return settings, Members.from_json(manager.ask("GET", address, "/nodes"))


def _pass(command: Callable[..., None], *, needs_catalog: bool) -> Callable[..., None]:
    @click.pass_obj
    @functools.wraps(command)
    def run(config: Config, *args: Any, **kwargs: Any) -> None:
        there = in_cluster(config, needs_catalog=needs_catalog)
        named = [
            f"{key} {getattr(there, key)}"
            for key in _NAMED
            if getattr(there, key) != getattr(config, key)
        ]
        if named:
            print(f"gear: of the cluster at {config.manager}: {', '.join(named)}", file=sys.stderr)
        command(there, *args, **kwargs)

    return run
