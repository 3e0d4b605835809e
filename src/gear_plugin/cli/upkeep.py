"""The commands that look after the store, the catalog and caches: `rm`, `gc`, `verify`."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gear_plugin.cli import clustered, output, wiring
from gear_plugin.cli.completion import GEAR_IMAGE
from gear_plugin.config import Config
from gear_plugin.errors import BadConfig, GearError, ImageNotFound, SourceUnavailable
from gear_plugin.names import ImageId

if TYPE_CHECKING:
    from gear_plugin.catalog import Catalog
    from gear_plugin.digest import Digest
    from gear_plugin.jobs import Progress
    from gear_plugin.jobs.collect import Collection
    from gear_plugin.jobs.remove import Removed
    from gear_plugin.jobs.verify import Needs, Problem, Verification

BROKEN = 1
"""The exit code of a verification that leaves something to do."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}


class _Duration(click.ParamType):  # type: ignore[type-arg]  # click 8.1 takes no argument
    """A time such as `90s`, `30m`, `24h`, `7d`, or `0`; in seconds."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        match = re.fullmatch(r"(\d+)([smhd])|0", str(value))
        if match is None:
            self.fail(f"{value!r} is not a time such as 90s, 30m, 24h or 7d", param, ctx)
        return float(match[1]) * _UNITS[match[2]] if match[1] else 0.0


@click.command("rm")
@click.argument("images", metavar="IMAGE-gear[:TAG]...", nargs=-1, required=True, type=GEAR_IMAGE)
@output.as_json
@clustered.pass_config
def remove(config: Config, images: tuple[str, ...], as_json: bool) -> None:
    """
    Remove Gear images from the catalog, and their build folders from this machine.

    The original's name does as well. Files stay in the store until `gear gc`;
    images in the engine (`docker rmi`) and in the registry are not touched, and
    who pulls such an image can use it until then.

    \b
        gear rm app-gear:1 app-gear:2
        gear gc
    """
    from gear_plugin import jobs
    from gear_plugin.jobs.remove import remove as job

    names = [ImageId.parse(image) for image in images]
    removed: list[Removed] = []
    failures: list[GearError] = []
    with ExitStack() as stack:
        progress = stack.enter_context(output.progress())
        watch = jobs.Watch("the catalog", config.push_stall_s, progress)
        catalog = watch.call(lambda: _existing_catalog(config))
        if catalog is not None:
            stack.enter_context(closing(catalog))
        for name in names:
            try:
                removed.append(watch.call(lambda name=name: job(name, catalog, config.root)))  # type: ignore[misc]
            except GearError as error:
                failures.append(error)
    if as_json:
        output.print_json([asdict(one) for one in removed])
    else:
        for one in removed:
            print(f"{one.gear_image}: {_removed(one)}")
        if removed:
            print("run `gear gc` to free what no other image needs", file=sys.stderr)
    _raise(failures)


def _removed(one: Removed) -> str:
    places = {"the catalog": one.record, "the build folder": one.build}
    text = "removed from " + " and ".join(place for place, was_there in places.items() if was_there)
    if one.record:
        text += f"; its {one.objects} objects ({output.size(one.size_bytes)}) are still stored"
    return text


def _raise(failures: Sequence[GearError]) -> None:
    """The only failure as it is; of several the last, and as docker's rm does, with 1."""
    if len(failures) == 1:
        raise failures[0]
    if failures:
        for failure in failures[:-1]:
            print(f"gear: {failure}", file=sys.stderr)
        raise GearError(str(failures[-1])) from failures[-1]


@click.command("gc")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option(
    "--grace",
    "grace_s",
    type=_Duration(),
    default="24h",
    show_default=True,
    metavar="TIME",
    help="Keep what was stored in the last TIME (90s, 30m, 24h, 7d).",
)
@click.option("--everything", is_flag=True, help="Go on if the catalog names no object at all.")
@output.as_json
@clustered.pass_config
def collect(config: Config, dry_run: bool, grace_s: float, everything: bool, as_json: bool) -> None:
    """
    Remove from the store what no image in the catalog needs.

    The catalog must be the one that everybody pushes to who uses this store.
    Pushes may go on meanwhile, and several collections at once; one that is
    interrupted is finished by the next.

    \b
        gear gc --dry-run
        gear gc --grace 7d
    """
    from gear_plugin import jobs
    from gear_plugin.jobs.collect import Patience
    from gear_plugin.jobs.collect import collect as job

    stall_s = config.push_stall_s
    with output.progress() as progress:
        catalog = jobs.Watch("the catalog", stall_s, progress).call(lambda: _catalog(config))
        with closing(catalog):
            done = job(
                wiring.store_folder(config),
                catalog,
                progress,
                grace_s=grace_s,
                is_dry_run=dry_run,
                may_empty=everything,
                patience=Patience(stall_s=stall_s),
            )
    if as_json:
        output.print_json(asdict(done))
        return
    for line in _collected(done, grace_s):
        print(line)


def _collected(done: Collection, grace_s: float) -> Iterator[str]:
    verb = "would be removed" if done.dry_run else "removed"
    yield (
        f"{verb}: {done.removed_objects} objects, {output.size(done.removed_bytes)}; "
        f"kept: {done.kept_objects} objects, {output.size(done.kept_bytes)}, "
        f"for {done.images} images; {done.seconds:.1f} s"
    )
    if done.recent_objects:
        yield (
            f"not needed, but stored in the last {grace_s / 3600:g} h: "
            f"{done.recent_objects} objects, {output.size(done.recent_bytes)}"
        )
    if done.waiting_objects:
        yield (
            f"in the trash until {done.pushes} pushes under way have ended: "
            f"{done.waiting_objects} objects, {output.size(done.waiting_bytes)}; "
            "run `gear gc` again then"
        )
    if done.missing_objects:
        yield (
            f"missing: {done.missing_objects} objects that images need; `gear verify` says which"
        )


@click.command()
@click.argument("images", metavar="[IMAGE-gear[:TAG]]...", nargs=-1, type=GEAR_IMAGE)
@click.option("--store", "place", flag_value="store", default=True, help="The store; the default.")
@click.option("--cache", "place", flag_value="cache", help="The caches of this machine's nodes.")
@click.option("--repair", is_flag=True, help="Replace what is damaged, or have it fetched again.")
@output.as_json
@clustered.pass_config
def verify(
    config: Config, images: tuple[str, ...], place: str, repair: bool, as_json: bool
) -> None:
    """
    Read and hash every object, and say which are damaged or missing.

    Of the named images alone, or everything there is. Exits with 1 if anything
    is wrong that was not repaired. Good copies come from this machine's caches
    and build folders and from the cluster's nodes; without one, a damaged object
    is moved out of the way, so that the next `gear push` of its image stores it
    again.

    \b
        gear verify
        gear verify --repair nginx-gear:1.25
        sudo gear verify --cache --repair
    """
    names = [ImageId.parse(image) for image in images]
    with ExitStack() as stack:
        progress = stack.enter_context(output.progress())
        check = _verify_store if place == "store" else _verify_cache
        done = check(config, names, repair, progress, stack)
    if as_json:
        output.print_json(asdict(done))
    else:
        for problem in done.problems:
            print(_problem(problem))
        print(
            f"{done.place}: {done.objects} objects, {output.size(done.size_bytes)}; "
            f"{len(done.problems)} of them not as they should be; {done.seconds:.1f} s"
        )
    if not done.is_good:
        sys.exit(BROKEN)


def _verify_store(
    config: Config, names: Sequence[ImageId], repair: bool, progress: Progress, stack: ExitStack
) -> Verification:
    from gear_plugin.cli.good_copies import GoodCopies
    from gear_plugin.jobs.verify import Repair, verify_store

    with_copies = None
    if repair:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="gear-verify-"))
        with_copies = Repair(GoodCopies(config), Path(scratch))
    return verify_store(
        wiring.store_folder(config),
        _needs(config, names, progress, stack),
        progress,
        everything=not names,
        repair=with_copies,
        stall_s=config.push_stall_s,
    )


def _verify_cache(
    config: Config, names: Sequence[ImageId], repair: bool, progress: Progress, stack: ExitStack
) -> Verification:
    from gear_plugin.jobs.verify import verify_cache

    roots = [node.root for node in wiring.nodes(config)]
    # (Path.is_dir would raise where only root may look.)
    roots = [root for root in dict.fromkeys(roots) if os.path.isdir(root / "public")]  # noqa: PTH112
    if not roots:
        raise SourceUnavailable(f"no node of this machine has a cache (in {config.root}/public)")
    return verify_cache(
        roots,
        _needs(config, names, progress, stack) if names else lambda: iter(()),
        progress,
        everything=not names,
        repair=repair,
        stall_s=config.push_stall_s,
    )


def _needs(config: Config, names: Sequence[ImageId], progress: Progress, stack: ExitStack) -> Needs:
    """The objects of the named images, or of all, as the catalog has them."""
    from gear_plugin import jobs

    watch = jobs.Watch("the catalog", config.push_stall_s, progress)
    catalog = stack.enter_context(closing(watch.call(lambda: _catalog(config))))
    if names:
        asked = [watch.call(lambda n=n: catalog.get_image(_original(n))) for n in names]  # type: ignore[misc]
    else:
        asked = watch.call(catalog.list_images)

    def needs() -> Iterator[tuple[str, frozenset[Digest]]]:
        for record in asked:
            try:
                objects = watch.call(lambda image=record.image: catalog.objects_of(image))  # type: ignore[misc]
            except ImageNotFound:
                continue  # it was removed meanwhile
            yield str(record.gear_image), objects

    return needs


def _original(name: ImageId) -> ImageId:
    return name.original if name.is_gear else name


def _problem(problem: Problem) -> str:
    text = f"{problem.problem}: {problem.digest} in {problem.place}"
    if problem.images:
        text += f", of {', '.join(problem.images)}"
    return f"{text} -> {problem.action}" if problem.action else text


def _existing_catalog(config: Config) -> Catalog | None:
    """The catalog, if there is one; looking makes none."""
    from gear_plugin.catalog import is_unmade

    return None if is_unmade(config.catalog) else wiring.catalog(config)


def _catalog(config: Config) -> Catalog:
    catalog = _existing_catalog(config)
    if catalog is None:
        raise BadConfig(f"there is no catalog {config.catalog}; set --catalog")
    return catalog
