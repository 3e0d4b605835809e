"""
All checks, at the same time and under one time limit, as one list of findings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from gear_plugin.catalog import Catalog
from gear_plugin.cluster import Members, Settings
from gear_plugin.config import Config
from gear_plugin.content.nfs_address import is_nfs, store_folder
from gear_plugin.errors import GearError
from gear_plugin.jobs.apart import Outcome, run_apart
from gear_plugin.jobs.doctor.engine import check_engine
from gear_plugin.jobs.doctor.finding import Finding, fix
from gear_plugin.jobs.doctor.kernel import check_features, check_fuse, check_way
from gear_plugin.jobs.doctor.places import check_root, check_store
from gear_plugin.jobs.doctor.services import (
    check_catalog,
    check_client,
    check_cluster,
    check_registry,
)
from gear_plugin.jobs.engine_facts import EngineFacts, ask_engine
from gear_plugin.jobs.nodes import find_nodes

_ENGINE_S = 4
_START_ENGINE = "start it (systemctl start docker), or set --host; users need the group docker"
_START_IT = "start it, or set --catalog"
_ASK_SERVER = "is its server up and reachable?"
_UNMOUNTED = "is what it is on still there? `umount -l` frees a dead mount"


@dataclass(frozen=True, slots=True)
class Patient:
    """What is to be looked at; *host* and *environ* are as for `DockerEngine`."""

    config: Config
    host: str | None
    environ: Mapping[str, str]
    open_catalog: Callable[[], Catalog]
    registry: str | None = None
    ask_cluster: Callable[[], tuple[Settings, Members]] | None = None
    """What the manager says; None: there is no cluster."""


@dataclass(frozen=True, slots=True)
class _Check:
    """A function that yields findings; *name* and *remedy* are for when it hangs or dies."""

    name: str
    run: Callable[[], Iterable[object]]
    remedy: str = _UNMOUNTED


def diagnose(patient: Patient, *, timeout_s: float) -> list[Finding]:
    """
    Every finding, in an order for reading; after 2 * *timeout_s* at the latest.

    Never raises what it looks at: that is a finding.
    """
    config = patient.config
    folder = store_folder(config.store, config.root)
    nfs = config.store if is_nfs(config.store) else ""
    first = [
        _Check("kernel", partial(check_features, config.root)),
        _Check("way of mounting", partial(check_way, config.root, config.mount_way)),
        _Check("FUSE", check_fuse, "apt-get install fuse libfuse2"),
        _Check("Docker engine", partial(_ask, patient.host, patient.environ), _START_ENGINE),
        _Check("main folder", partial(check_root, config.root)),
        _Check("catalog", partial(check_catalog, config.catalog, patient.open_catalog), _START_IT),
        _Check("store", partial(check_store, folder, nfs=nfs), _ASK_SERVER),
    ]
    if patient.ask_cluster is not None:
        first.append(_Check("cluster", partial(check_cluster, patient.ask_cluster), _ASK_SERVER))
    if patient.registry:
        registry = partial(check_registry, patient.registry)
        first.append(_Check(f"registry {patient.registry}", registry, _ASK_SERVER))
    outcomes = _run(first, timeout_s)
    values = [value for outcome in outcomes for value in outcome.values]
    engine = next((value for value in values if isinstance(value, EngineFacts)), None)
    second = _node_checks(config, engine)
    found = [*zip(first, outcomes, strict=True), *zip(second, _run(second, timeout_s), strict=True)]
    return [finding for check, outcome in found for finding in _findings(check, outcome)]


def _node_checks(config: Config, engine: EngineFacts | None) -> list[_Check]:
    """Those of the node that the engine stands on, or would stand on."""
    node = find_nodes(config.root, config.run, engine)[0]
    is_expected = engine is not None and engine.runs_gear
    checks = [_Check(f"client of {node.name}", partial(check_client, node, is_expected))]
    store = engine.plugin.settings.get("store") if engine and engine.plugin else None
    if store and node.inside is not None:
        name = f"store of {node.name}"
        check = partial(check_store, node.seen_from_outside(store), name)
        checks.append(_Check(name, check, _ASK_SERVER))
    return checks


def _ask(host: str | None, environ: Mapping[str, str]) -> Iterable[object]:
    """Findings, and the facts themselves for the checks that come after."""
    try:
        engine = ask_engine(host, environ, timeout_s=_ENGINE_S)
    except GearError as error:
        yield fix("Docker engine", str(error), _START_ENGINE)
        return
    yield from check_engine(engine)
    yield engine


def _run(checks: list[_Check], timeout_s: float) -> list[Outcome]:
    return run_apart([check.run for check in checks], timeout_s=timeout_s)


def _findings(check: _Check, outcome: Outcome) -> list[Finding]:
    findings = [value for value in outcome.values if isinstance(value, Finding)]
    if outcome.trouble:
        findings.append(fix(check.name, outcome.trouble, check.remedy))
    elif isinstance(outcome.error, GearError | OSError):
        findings.append(fix(check.name, str(outcome.error), check.remedy))
    elif outcome.error is not None:
        raise outcome.error
    return findings
