"""`gear inspect`: all about one Gear image, and its list of files."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gear_plugin.cli import clustered, output, wiring
from gear_plugin.cli.completion import GEAR_IMAGE
from gear_plugin.config import Config
from gear_plugin.errors import GearError, ImageNotFound
from gear_plugin.names import ImageId

if TYPE_CHECKING:
    from gear_plugin.catalog import ImageRecord
    from gear_plugin.jobs.inspect import ImageReport

PLACES = ("node", "build", "engine", "registry")

found_in = click.option(
    "--from",
    "place",
    type=click.Choice(PLACES),
    help="Look for the index there alone, not in each of these places in turn.",
)


@click.command()
@click.argument("image", metavar="IMAGE-gear[:TAG]", type=GEAR_IMAGE)
@click.option("--files", is_flag=True, help="List every path, with size and digest.")
@found_in
@output.as_json
@clustered.pass_store
def inspect(config: Config, image: str, files: bool, place: str | None, as_json: bool) -> None:
    """
    Show all about one Gear image.

    Its index is looked for on this node, in `gear build`'s folder, in the
    engine and in the registry; no file is downloaded.

    \b
        gear inspect nginx-gear:1.25
        gear inspect nginx-gear:1.25 --json | jq .config.config.Env
        gear inspect nginx-gear:1.25 --files | grep /etc/
    """
    from gear_plugin.cli import listing
    from gear_plugin.jobs.inspect import inspect as job
    from gear_plugin.jobs.locate import locate_index

    name = ImageId.parse(image)
    places = wiring.nodes(config)
    sources = wiring.index_sources(config, name, places, place)
    with tempfile.TemporaryDirectory(prefix="gear-inspect-") as scratch:
        located = locate_index(name, sources, Path(scratch))
        if files:
            listing.show(located.tree(), as_json=as_json)
            return
        record, failure = _record(config, name)
        report = job(located, config.root, [node.root for node in places], record)
    if failure is not None:
        print(f"gear: not known whether it was pushed: {failure}", file=sys.stderr)
    if as_json:
        output.print_json(asdict(report))
    else:
        _print(report, pushed="unknown" if failure else _same(report, report.pushed))


def _record(config: Config, name: ImageId) -> tuple[ImageRecord | None, GearError | None]:
    """What the catalog says of it; nothing, and why, when it does not answer."""
    try:
        return wiring.ask_catalog(config, lambda found: found.get_image(name.original)), None
    except ImageNotFound:
        return None, None
    except GearError as error:
        return None, error


def _print(report: ImageReport, pushed: str) -> None:
    """One fact a line, and the configuration as it is."""
    large = sum(one.size_bytes for one in report.large_objects)
    facts = [
        ("Original", f"{report.image} ({report.image_id})"),
        ("Platform", report.platform),
        ("Found in", report.found_in),
        ("Index", f"{report.index}, {output.size(report.index_bytes)}"),
        ("Manifest", output.size(report.manifest_bytes)),
        ("Files", f"{report.files} files, {report.directories} directories, {report.others} other"),
        ("Objects", f"{report.objects}, {output.size(report.object_bytes)}"),
        ("Large objects", f"{len(report.large_objects)}, {output.size(large)}"),
        ("Start profile", f"{len(report.profile)} objects" if report.profile else "not known yet"),
        ("Cached here", _cached(report)),
        ("Built here", _same(report, report.built)),
        ("Pushed", pushed),
    ]
    print(report.gear_image)
    for name, value in facts:
        print(f"  {name + ':':<16}{value}")
    print("  Configuration:")
    for name, value in sorted((report.config.get("config") or {}).items()):
        if value not in (None, "", [], {}, False):
            print(f"    {name + ':':<14}{json.dumps(value, ensure_ascii=False)}")


def _cached(report: ImageReport) -> str:
    if report.cached_objects is None or report.cached_bytes is None:
        return "unknown (no node here, or only root can look)"
    return (
        f"{report.cached_objects} of {report.objects} objects, {output.size(report.cached_bytes)} "
        f"({output.percent(report.cached_bytes, report.object_bytes)})"
    )


def _same(report: ImageReport, index: str | None) -> str:
    """Whether another place has this index."""
    if index is None:
        return "no"
    return "yes" if index == report.index else f"yes, but another index: {index}"
