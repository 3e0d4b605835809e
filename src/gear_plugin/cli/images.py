"""The commands that make, publish and list Gear images."""

from __future__ import annotations

import contextlib
import sys
import time
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from gear_plugin.cli import clustered, output, sources, wiring
from gear_plugin.cli.completion import GEAR_IMAGE, ORDINARY_IMAGE
from gear_plugin.config import Config
from gear_plugin.errors import BadInput, EngineUnavailable, GearError
from gear_plugin.names import ImageId

if TYPE_CHECKING:
    from gear_plugin.catalog import ImageRecord
    from gear_plugin.jobs import Source
    from gear_plugin.jobs.listing import ListedImage

STDOUT = "-"


@click.command()
@click.argument("image", metavar="IMAGE[:TAG]", type=ORDINARY_IMAGE)
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
            try:
                engine = stack.enter_context(closing(wiring.engine(config)))
            except EngineUnavailable as error:
                if place != sources.ENGINE:
                    raise
                raise EngineUnavailable(
                    f"{error}; without one, --from registry or an archive"
                ) from error
        source = sources.source(place, name, config, engine, platform, stack)
        _refuse_to_replace(source, target)
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


def _refuse_to_replace(source: Source, target: Path | BinaryIO | None) -> None:
    """The result must not take the place of what it was made from; raises BadInput."""
    from gear_plugin import jobs

    if isinstance(source, jobs.FileSource) and isinstance(target, Path):
        with contextlib.suppress(OSError):
            if target.samefile(source.path):
                raise BadInput(f"--output {target} would replace what --from reads")


def _output(file: str | None, *, as_json: bool) -> Path | BinaryIO | None:
    if file != STDOUT:
        return Path(file) if file else None
    if as_json:
        raise BadInput("--output - and --json both want stdout; give --output a file")
    if sys.stdout.isatty():
        raise BadInput("no archive is written to a terminal; give --output a file, or use a pipe")
    return sys.stdout.buffer


@click.command()
@click.argument("image", metavar="IMAGE-gear[:TAG]", type=GEAR_IMAGE)
@click.option("--create-store", is_flag=True, help="Make a store in a folder that exists.")
@output.as_json
@clustered.pass_config
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
    with closing(wiring.pusher(config, name)) as pusher, output.progress() as progress:
        stall_s = config.push_stall_s
        # A share may hang at the first look already.
        store = jobs.Watch(f"store {config.store}", stall_s, progress).call(
            lambda: wiring.store(config, create=create_store)
        )
        catalog = jobs.Watch("the catalog", stall_s, progress).call(lambda: wiring.catalog(config))
        with closing(catalog):
            result = jobs.push(
                name,
                pusher,
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
@click.option("--local", is_flag=True, help="Do not ask the catalog: only what is here.")
@output.as_json
@click.pass_obj
def images(config: Config, local: bool, as_json: bool) -> None:
    """
    List the Gear images that were pushed, built here, or are on this node.

    WHERE says which of these; CACHED, how much of an image is on this node.
    One name may have two lines: what was built since is not what was pushed.

    \b
        gear images
        gear images --local --json
    """
    from gear_plugin.jobs.listing import list_images

    records, failure = ([], None) if local else _records(config)
    roots = [node.root for node in wiring.nodes(config)]
    found = list_images(records, config.root, roots)
    for problem in found.problems:
        print(f"gear: {problem}", file=sys.stderr)
    if as_json:
        output.print_json([asdict(image) for image in found.images])
    else:
        output.print_table(_TITLES, [_row(image) for image in found.images])
    if failure is not None:
        raise failure


_TITLES = ("IMAGE", "INDEX", "OBJECTS", "SIZE", "BUILT", "WHERE", "CACHED")


def _records(config: Config) -> tuple[list[ImageRecord], GearError | None]:
    """The catalog's records; none, and why, when it does not answer."""
    try:
        there = clustered.in_cluster(config)
        return wiring.ask_catalog(there, lambda catalog: catalog.list_images()) or [], None
    except GearError as error:
        return [], error


def _row(image: ListedImage) -> tuple[str, ...]:
    places = {"pushed": image.pushed, "built": image.built, "node": image.installed}
    built = "-"
    if image.created_s is not None:
        built = time.strftime("%Y-%m-%d %H:%M", time.localtime(image.created_s))
    cached = "-"
    if image.cached_bytes is not None:
        share = output.percent(image.cached_bytes, image.size_bytes)
        cached = f"{output.size(image.cached_bytes)} ({share})"
    return (
        image.gear_image,
        image.index.removeprefix("sha256:")[:12],
        str(image.objects),
        output.size(image.size_bytes),
        built,
        ",".join(place for place, is_there in places.items() if is_there),
        cached,
    )
