"""The commands that make, publish and list Gear images."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict

import click

from gear_plugin.cli import output, wiring
from gear_plugin.config import Config
from gear_plugin.names import ImageId


@click.command()
@click.argument("image", metavar="IMAGE[:TAG]")
@output.as_json
@click.pass_obj
def build(config: Config, image: str, as_json: bool) -> None:
    """
    Turn an image of the Docker engine into a Gear image.

    The result is IMAGE-gear[:TAG] in the same engine, and the image's files
    below <root>/build/, where `gear push` finds them.

    \b
        docker pull nginx:1.25
        gear build nginx:1.25
        docker image inspect nginx-gear:1.25
    """
    from gear_plugin import jobs

    name = ImageId.parse(image)
    with closing(wiring.engine(config)) as engine, output.progress() as progress:
        result = jobs.build(name, engine, config.root, progress)
    if as_json:
        output.print_json(asdict(result))
        return
    saved = 100 - 100 * result.index_bytes / max(result.original_bytes, 1)
    print(
        f"{result.gear_image}: index {output.size(result.index_bytes)} "
        f"instead of {output.size(result.original_bytes)} to pull ({saved:.1f} % less), "
        f"{result.files} files in {result.objects} objects, {result.seconds:.1f} s"
    )


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
    login`). Files that the store has already are not sent again.

    \b
        gear build registry.example/team/app:1
        gear push registry.example/team/app-gear:1
    """
    from gear_plugin import jobs

    name = ImageId.parse(image)
    with closing(wiring.engine(config)) as engine, output.progress() as progress:
        stall_s = config.push_stall_s
        # A share may hang at the first look already.
        store = jobs.Watch(f"store {config.store}", stall_s, progress).call(
            lambda: wiring.store(config, create=create_store)
        )
        catalog = jobs.Watch("the catalog", stall_s, progress).call(lambda: wiring.catalog(config))
        with closing(catalog):
            result = jobs.push(
                name,
                engine,
                store,
                catalog,
                config.root,
                progress,
                stall_s=stall_s,
            )
    if as_json:
        output.print_json(asdict(result))
        return
    print(
        f"{result.gear_image}: {result.new_objects} of {result.objects} objects were new: "
        f"{output.size(result.new_bytes)}, stored in {output.size(result.new_stored_bytes)}; "
        f"not sent again: {output.size(result.saved_bytes)}, "
        f"{output.size(result.saved_stored_bytes)} in the store; {result.seconds:.1f} s"
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
