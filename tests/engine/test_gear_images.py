"""
The main job: real engines, a real registry, the plugin installed from it.

Engine A (overlay2) builds and pushes; engine B runs on the plugin, once for
each way of mounting.  Every image does there what it is for, and what a
container sees is compared with A's container of the original image, by code
that knows nothing of Gear.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.engine.compare import differences, exported, scan
from tests.engine.conftest import Originals
from tests.engine.containers import (
    DOCKERS_OWN,
    content_of,
    mount_id,
    original,
    pull,
    running,
    touched,
    tree,
    unexpected,
)
from tests.engine.engine import Engine
from tests.engine.filetrace import OpenTrace
from tests.engine.images import NAMES, TASKS
from tests.engine.storewatch import StoreWatch
from tests.engine.world import Gear, Node
from tests.waiting import eventually

pytestmark = [pytest.mark.engine, pytest.mark.root]

EXPORTED = ("torture", "node", "tiny")
"""A second look costs seconds an image: at the odd one, one of many files, one of few."""


def test_the_engine_runs_on_the_plugin(node: Node) -> None:
    """
    `docker info` says so, how Gear images are mounted, and what was set at the installation.
    """
    info = json.loads(node.engine.docker("info", "-f", "{{json .}}").stdout)
    status = dict(info["DriverStatus"])
    assert info["Driver"] == "gear"
    assert status["Mount Way"].split()[0] == node.way
    assert status["Cache Limit"] == str(20 * 2**30)
    assert status["Object Store"] == "/mnt/store"


@pytest.mark.parametrize("name", NAMES)
def test_the_gear_image_has_the_originals_configuration(
    gear: Gear, pushed: dict[str, str], originals: Originals, name: str
) -> None:
    """
    Env, Cmd, Entrypoint, User, Volumes, Labels, Healthcheck: everything.
    """
    found = json.loads(gear.engine.docker("image", "inspect", pushed[name]).stdout)
    assert found[0]["Config"] == originals.config(name)


def test_building_and_pushing_again_changes_nothing(gear: Gear, pushed: dict[str, str]) -> None:
    """
    The same image gives the same index; every object is there already.
    """

    def image_id() -> str:
        return gear.engine.docker("image", "inspect", pushed["web"], "-f", "{{.Id}}").stdout

    before, objects = image_id(), StoreWatch(gear.store).everything()
    gear("build", original(pushed, "web"))
    gear("push", pushed["web"])
    assert image_id() == before
    assert StoreWatch(gear.store).everything() == objects


@pytest.mark.parametrize("name", NAMES)
def test_pull_reads_no_object_and_a_task_only_what_it_opens(
    node: Node, gear: Gear, pushed: dict[str, str], name: str
) -> None:
    """
    The image does what it is for; what was read is the content of files that were opened.
    """
    node.forget_cache()
    watch = StoreWatch(gear.store)
    pull(node, pushed[name])
    assert watch.read() == set()
    with running(node.engine, pushed[name]) as container:
        eventually(watch.read, what="the first open")
        started = watch.read()
        watch.reset()
        merged = node.inner_root / "containers" / mount_id(node, container) / "merged"
        with OpenTrace(merged) as trace:
            done = node.engine.docker("exec", *TASKS[name].exec(container))
        assert done.stdout.strip() == TASKS[name].output
        opened = {content_of(tree(node.engine, container), path) for path in trace.paths()}
        fetched = watch.read()
    assert fetched <= opened
    assert started | fetched
    assert len(started | fetched) < len(watch.everything()) / 2


@pytest.mark.parametrize("name", NAMES)
def test_the_originals_do_the_same(engine_a: Engine, pushed: dict[str, str], name: str) -> None:
    """
    So that a task which fails on Gear tells something about Gear.
    """
    words = ("run", "--rm", "--network", "none", *TASKS[name].run(original(pushed, name)))
    assert engine_a.docker(*words).stdout.strip() == TASKS[name].output


@pytest.mark.parametrize("name", NAMES)
def test_every_file_is_the_originals(
    node: Node, originals: Originals, pushed: dict[str, str], name: str
) -> None:
    """
    Content and all metadata, read through the two containers.
    """
    pull(node, pushed[name])
    with running(node.engine, pushed[name]) as container:
        ours = scan(tree(node.engine, container), DOCKERS_OWN)
    found = differences(originals.scan(name), ours)
    left = unexpected(found, node.engine, pushed[name])
    assert not left, "\n".join(left)


@pytest.mark.parametrize("name", EXPORTED)
def test_an_exported_container_is_the_originals(
    node: Node, originals: Originals, pushed: dict[str, str], tmp_path: Path, name: str
) -> None:
    """
    A second way of looking: what docker itself reads of the two, listed by GNU tar.
    """
    pull(node, pushed[name])
    with running(node.engine, pushed[name]) as container:
        ours = exported(node.engine, container, tmp_path, DOCKERS_OWN)
    theirs = originals.exported(name)
    uneven = set(ours.listing) ^ set(theirs.listing)
    known = tuple(f"{path}/" for path in touched(node.engine, pushed[name]))
    left = sorted(line for line in uneven if not line.endswith(known))
    assert not left, "\n".join(left)
    assert len(ours.listing) == len(theirs.listing)
    assert ours.content == theirs.content


def test_a_second_container_reads_nothing_and_a_second_image_only_what_is_new(
    node: Node, gear: Gear, pushed: dict[str, str]
) -> None:
    """
    Objects are shared by content, whatever image brought them.
    """
    task = ("python3", "-c", "import flask, app; print('ok')")
    node.forget_cache()
    watch = StoreWatch(gear.store)
    pull(node, pushed["web"])
    with running(node.engine, pushed["web"]) as container:
        node.engine.docker("exec", container, *task)
    watch.reset()
    with running(node.engine, pushed["web"]) as container:
        node.engine.docker("exec", container, *task)
    assert watch.read() == set()
    known = node.cached()
    pull(node, pushed["web2"])
    with running(node.engine, pushed["web2"]) as container:
        node.engine.docker("exec", container, *task)
    read = watch.read()
    assert read
    assert not read & known
    assert len(read) < 10
