"""
What answers calls: catalog, registry, and a node's own daemons.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gear_plugin.catalog import Catalog, is_unmade
from gear_plugin.cluster import Members, Settings
from gear_plugin.content import LocalClient
from gear_plugin.errors import AccessDenied, BadConfig, GearError
from gear_plugin.jobs.doctor.finding import Finding, fix, ok, skip, warn
from gear_plugin.jobs.nodes import NodePlace

_CLIENT_S = 5.0
_REGISTRY_S = 5.0
_CERTIFICATES = Path("/etc/docker/certs.d")


def check_catalog(url: str, open_catalog: Callable[[], Catalog]) -> Iterator[Finding]:
    """The configured catalog, by listing what is in it."""
    check = "catalog"
    if is_unmade(url):
        yield ok(check, f"{url} is not there yet; the first `gear push` makes it")
        return
    try:
        catalog = open_catalog()
        try:
            images = len(catalog.list_images())
        finally:
            catalog.close()
    except BadConfig as error:
        if os.geteuid():
            yield skip(check, str(error), "run it as root, or as the user who pushes")
        else:
            yield fix(check, str(error), "set --catalog")
    except GearError as error:
        yield fix(check, str(error), "start it, or set --catalog")
    else:
        yield ok(check, f"{url} answers; images: {images}")


def check_cluster(ask: Callable[[], tuple[Settings, Members]]) -> Iterator[Finding]:
    """The manager of the settings, by what it says of the cluster."""
    check = "cluster"
    try:
        settings, members = ask()
    except AccessDenied as error:
        yield fix(check, str(error), "set token to what `gear token` prints on its machine")
    except BadConfig as error:
        yield fix(check, str(error), "see docs/settings.md")
    except GearError as error:
        yield fix(check, str(error), "start `gear manager` there, or set another manager")
    else:
        store = settings.store or "each node's own"
        live, nodes = len(members.live()), len(members.nodes)
        detail = f"{live} of {nodes} nodes are live; store: {store}"
        if settings.catalog or not settings.store:
            yield ok(check, f"{detail}; catalog: {settings.catalog or 'own'}")
        else:
            yield warn(
                check,
                f"{detail}; its catalog is a file on the manager's machine",
                "push there, or keep the catalog in etcd",
            )


def check_registry(host: str) -> Iterator[Finding]:
    """Whether the registry *host* (with its port) speaks the distribution API."""
    check = f"registry {host}"
    is_local = host.partition(":")[0] in ("localhost", "127.0.0.1")
    try:
        yield _asked(
            check, http.client.HTTPSConnection(host, timeout=_REGISTRY_S, context=_tls(host))
        )
    except ssl.SSLCertVerificationError as error:
        remedy = f"put its CA certificate into {_CERTIFICATES}/{host}/ca.crt"
        yield fix(check, f"its certificate is not trusted: {error.verify_message}", remedy)
    except (OSError, http.client.HTTPException) as error:
        if not is_local:
            yield fix(check, f"does not answer: {error}", "check its name, port and firewall")
            return
        # As docker does: a local registry may do without TLS.
        try:
            yield _asked(check, http.client.HTTPConnection(host, timeout=_REGISTRY_S))
        except (OSError, http.client.HTTPException) as plain:
            yield fix(check, f"does not answer: {plain}", "start it; check its port")


def _asked(check: str, connection: http.client.HTTPConnection) -> Finding:
    try:
        connection.request("GET", "/v2/")
        status = connection.getresponse().status
    finally:
        connection.close()
    match status:
        case 200:
            return ok(check, "answers")
        case 401:
            return ok(check, "answers, and wants a login (`docker login`)")
    return fix(check, f"answers with status {status}", "is this a registry?")


def _tls(host: str) -> ssl.SSLContext:
    """Trusts what docker trusts: the system's certificates, and those kept for *host*."""
    context = ssl.create_default_context()
    for path in sorted((_CERTIFICATES / host).glob("*.crt")):
        context.load_verify_locations(path)
    return context


def check_client(node: NodePlace, engine_runs_gear: bool) -> Iterator[Finding]:
    """The node's client and FUSE daemon."""
    check = f"client of {node.name}"
    socket = node.run / "client.sock" if node.run else None
    try:
        is_there = socket is not None and socket.exists()
    except PermissionError as error:
        yield skip(check, f"cannot look: {error.strerror}", "run it as root")
        return
    if socket is None or not is_there:
        if engine_runs_gear:
            yield fix(check, "is not running", "see dockerd's log; gear graphdriver starts it")
        else:
            yield skip(check, "is not running; this is no node now")
        return
    client = LocalClient(socket, _CLIENT_S)
    try:
        cached = client.status()["cached"]
    except GearError as error:
        if os.geteuid():
            yield skip(check, str(error), "run it as root")
        else:
            yield fix(check, str(error), "see the plugin's log (dockerd's)")
    else:
        size = cached["size_bytes"] / 1e6
        yield ok(check, f"answers; {cached['objects']} objects cached, {size:.1f} MB")
        with contextlib.suppress(GearError):  # it is on its own
            yield _place_in_cluster(node, client.cluster())
    yield _fuse_daemon(node)


def _place_in_cluster(node: NodePlace, found: dict[str, Any]) -> Finding:
    """What the client of *node* says of its cluster, as `wire` describes it."""
    check = f"cluster of {node.name}"
    members = Members.from_json(found["members"])
    detail = (
        f"{found['cluster']}, manager {found['manager']}; "
        f"{len(members.live())} of {len(members.nodes)} nodes are live"
    )
    if found["trouble"]:
        remedy = "what runs goes on; is the manager up, and the token the cluster's?"
        return warn(check, f"{detail}; not in touch with it: {found['trouble']}", remedy)
    return ok(check, detail)


def _fuse_daemon(node: NodePlace) -> Finding:
    check = f"FUSE daemon of {node.name}"
    assert node.run is not None
    try:
        state = json.loads((node.run / "fuse.json").read_text())
        point = node.seen_from_outside(str(state["mountpoint"]))
        os.statvfs(point)
        # A mount that is gone leaves an ordinary empty folder behind.
        is_alive = (point / "error").is_dir()
    except FileNotFoundError:
        return fix(check, "is not running", "it is started again by itself; see the log")
    except PermissionError as error:
        return skip(check, f"cannot look: {error.strerror}", "run it as root")
    except (OSError, ValueError, KeyError) as error:
        return fix(check, f"does not answer: {error}", "it is restarted by itself; see the log")
    if not is_alive:
        return warn(check, f"{point} shows nothing", "it is being restarted; look again")
    return ok(check, f"answers at {state['mountpoint']}")
