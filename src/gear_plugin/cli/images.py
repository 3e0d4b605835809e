"""The commands that make, publish and list Gear images."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import click

from gear_plugin.cli import output, sources, wiring
from gear_plugin.config import Config
from gear_plugin.errors import BadInput
from gear_plugin.names import ImageId

STDOUT = "-"


@click.command()
@click.argument("image", metavar="IMAGE[:TAG]")
@click.option(
    "--from",
    "place",
    metavar="SOURCE",
    default=sources.ENGINE,
    help="Where the image is: `engine` (the default), `registry`, docker://REFERENCE, "
    "an archive, an OCI layout folder, or - for stdin.",
)
@click.option(
    "--platform", "wanted", metavar="OS/ARCH[/VARIANT]", help="Of a multi-platform image."
)
@click.option(
    "-o",
    "--output",
    "output_file",
    metavar="FILE",
    help="Write an archive for `docker load`; - is stdout.",
)
@click.option("--load", is_flag=True, help="Load the result into the engine, wherever it is from.")
@output.as_json
@click.pass_obj
def build(
    config: Config,
    image: str,
    place: str,
    wanted: str | None,
    output_file: str | None,
    load: bool,
    as_json: bool,
) -> None:
    """
    Turn an image into a Gear image, IMAGE-gear[:TAG].

    From an engine the result goes into that engine, unless --output says
    otherwise. No other source needs an engine, nor does `gear push` then. The
    image's files stay below <root>/build/, where `gear push` finds them.

    \b
        docker pull nginx:1.25
        gear build nginx:1.25
    Without any engine:
        gear build --from registry registry.example/team/app:1
        gear build --from docker://docker.io/nginx@sha256:... team/nginx:1
        gear build --from saved.tar --output app-gear.tar team/app:1
    """
    from gear_plugin import jobs

    name = ImageId.parse(image)
    platform = jobs.Platform.parse(wanted) if wanted else None
    target = _output(output_file, as_json=as_json)
    with ExitStack() as stack:
        load = load or (place == sources.ENGINE and target is None)
        engine = None
        if load or place == sources.ENGINE:
            engine = stack.enter_context(closing(wiring.engine(config)))
        source = sources.source(place, name, config, engine, platform, stack)
        progress = stack.enter_context(output.progress())
        result = jobs.build(
            name,
            engine if load else None,
            config.root,
            progress,
            source=source,
            output=target,
            platform=platform,
        )
    if as_json:
        output.print_json(asdict(result))
        return
    saved = 100 - 100 * result.index_bytes / max(result.original_bytes, 1)
    print(
        f"{result.gear_image}: index {output.size(result.index_bytes)} "
        f"instead of {output.size(result.original_bytes)} to pull ({saved:.1f} % less), "
        f"{result.files} files in {result.objects} objects, {result.seconds:.1f} s",
        file=sys.stderr if result.output == STDOUT else sys.stdout,
    )


def _output(file: str | None, *, as_json: bool) -> Path | BinaryIO | None:
    if file != STDOUT:
        return Path(file) if file else None
    if as_json:
        raise BadInput("--output - and --json both want stdout; give --output a file")
    if sys.stdout.isatty():
        raise BadInput("no archive is written to a terminal; give --output a file, or use a pipe")
    return sys.stdout.buffer


@click.command()
@click.argument("image", metavar="IMAGE-gear[:TAG]")
@click.option("--create-store", is_flag=True, help="Make a store in an existing empty folder.")
@output.as_json
@click.pass_obj
def push(config: Config, image: str, create_store: bool, as_json: bool) -> None:
    """
    Publish a Gear image that was built here.

    Its files go to the store, their names to the catalog, and last its index
    to the registry that the image's name begins with (log in with `docker
    login`); through the engine, if it was built into one. Files that the store
    has already are not sent again.

    \b
        gear build registry.example/team/app:1
        gear push registry.example/team/app-gear:1
    """
    from gear_plugin import jobs

    name = ImageId.parse(image)
    store = wiring.store(config, create=create_store)
    with (
        closing(wiring.pusher(config, name)) as pusher,
        closing(wiring.catalog(config)) as catalog,
        output.progress() as progress,
    ):
        result = jobs.push(name, pusher, store, catalog, config.root, progress)
    if as_json:
        output.print_json(asdict(result))
        return
    print(
        f"{result.gear_image}: {result.new_objects} of {result.objects} objects were new "
        f"({output.size(result.sent_bytes)} stored, {output.size(result.saved_bytes)} "
        f"there already), {result.seconds:.1f} s"
    )


@click.command()
@output.as_json
@click.pass_obj
def images(config: Config, as_json: bool) -> None:
    """List the Gear images that were pushed, from the catalog."""
    with closing(wiring.catalog(config)) as catalog:
        records = catalog.list_images()
    if as_json:
        output.print_json(
            [
                {
                    "image": str(record.image),
                    "gear_image": str(record.gear_image),
                    "index": str(record.index),
                    "objects": record.objects,
                    "size_bytes": record.size_bytes,
                    "created_s": record.created_s,
                }
                for record in records
            ]
        )
        return
    output.print_table(
        ("IMAGE", "INDEX", "OBJECTS", "SIZE", "BUILT"),
        [
            (
                str(record.gear_image),
                record.index.hex[:12],
                str(record.objects),
                output.size(record.size_bytes),
                time.strftime("%Y-%m-%d %H:%M", time.localtime(record.created_s)),
            )
            for record in records
        ],
    )
