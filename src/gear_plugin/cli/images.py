"""The commands that make and list Gear images."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click

from gear_plugin.cli import wiring
from gear_plugin.config import Config
from gear_plugin.names import ImageId

as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def progress() -> Callable[[str], None]:
    """Where a job's lines go: stderr."""
    return lambda text: print(text, file=sys.stderr, flush=True)


def size(count: int) -> str:
    """Bytes for people, in docker's decimal units."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


@click.command()
@click.argument("image", metavar="IMAGE[:TAG]")
@as_json
@click.pass_obj
def build(config: Config, image: str, as_json: bool) -> None:
    """
    Turn an image of the Docker engine into a Gear image.

    The result is IMAGE-gear[:TAG] in the same engine, and the image's files
    below <root>/build/, where `gear push` finds them.
    """
    from gear_plugin import jobs

    name = ImageId.parse(image)
    result = jobs.build(name, wiring.engine(config), config.root, progress())
    if as_json:
        _print_json(asdict(result))
        return
    saved = 100 - 100 * result.index_bytes / max(result.original_bytes, 1)
    print(
        f"{result.gear_image}: index {size(result.index_bytes)} "
        f"instead of {size(result.original_bytes)} to pull ({saved:.1f} % less), "
        f"{result.files} files in {result.objects} objects, {result.seconds:.1f} s"
    )


@click.command()
@click.argument("image", metavar="IMAGE-gear[:TAG]")
@as_json
@click.pass_obj
def push(config: Config, image: str, as_json: bool) -> None:
    """
    Publish a Gear image: files to the store, names to the catalog, index to the registry.

    Objects that the store has already are not sent again.
    """
    from gear_plugin import jobs

    name = ImageId.parse(image)
    result = jobs.push(
        name,
        wiring.engine(config),
        wiring.store(config),
        wiring.catalog(config),
        config.root,
        progress(),
    )
    if as_json:
        _print_json(asdict(result))
        return
    print(
        f"{result.gear_image}: {result.new_objects} of {result.objects} objects were new "
        f"({size(result.sent_bytes)} stored, {size(result.saved_bytes)} there already), "
        f"{result.seconds:.1f} s"
    )


@click.command()
@as_json
@click.pass_obj
def images(config: Config, as_json: bool) -> None:
    """List the Gear images that were pushed."""
    records = wiring.catalog(config).list_images()
    if as_json:
        _print_json(
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
    from rich.console import Console
    from rich.table import Table

    table = Table("IMAGE", "INDEX", "OBJECTS", "SIZE", "BUILT", box=None, header_style="")
    for record in records:
        built = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.created_s))
        table.add_row(
            str(record.gear_image),
            record.index.hex[:12],
            str(record.objects),
            size(record.size_bytes),
            built,
        )
    Console().print(table)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))
