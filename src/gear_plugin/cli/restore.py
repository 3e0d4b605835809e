"""`gear restore`: a Gear image back into an ordinary one."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import asdict
from pathlib import Path

import click

from gear_plugin.cli import clustered, output, wiring
from gear_plugin.cli.completion import GEAR_IMAGE
from gear_plugin.cli.inspect import found_in
from gear_plugin.config import Config
from gear_plugin.errors import BadInput, EngineUnavailable
from gear_plugin.names import ImageId


@click.command()
@click.argument("image", metavar="IMAGE-gear[:TAG]", type=GEAR_IMAGE)
@click.option("--name", metavar="NEW[:TAG]", help="What to call it; else as the original.")
@click.option(
    "-o",
    "--output",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write an archive for `docker load` instead of loading it into the engine.",
)
@click.option("--replace", is_flag=True, help="Take the name of an image that the engine has.")
@found_in
@output.as_json
@clustered.pass_store
def restore(
    config: Config,
    image: str,
    name: str | None,
    file: Path | None,
    replace: bool,
    place: str | None,
    as_json: bool,
) -> None:
    """
    Turn a Gear image back into an ordinary Docker image.

    The result has the same files, bit for bit, and the same configuration, in
    one layer.  Neither the original nor Gear is needed to run it.  Files come
    from this node's cache, `gear build`'s folder and the store.

    \b
        gear restore nginx-gear:1.25 --name nginx-restored:1.25
        gear restore nginx-gear:1.25 --output nginx.tar
    """
    from gear_plugin.jobs.locate import locate_index
    from gear_plugin.jobs.restore import IntoEngine, IntoFile
    from gear_plugin.jobs.restore import restore as job

    if file is not None and replace:
        raise BadInput("--replace is about the engine; it says nothing with --output")
    if file == Path("-"):
        raise BadInput("the archive is written to a file, not to a pipe: --output FILE")
    gear_image = ImageId.parse(image)
    new = ImageId.parse(name) if name else gear_image.original
    places = wiring.nodes(config)
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="gear-restore-"))
        progress = stack.enter_context(output.progress())
        # First, so that a dead engine is noticed before anything is done.
        target: IntoEngine | IntoFile
        if file is None:
            try:
                engine = stack.enter_context(wiring.quick_engine(config))
            except EngineUnavailable as error:
                raise EngineUnavailable(f"{error}; without one, --output FILE") from error
            target = IntoEngine(engine, config.root, replace)
        else:
            target = IntoFile(file)
        sources = wiring.index_sources(config, gear_image, places, place)
        located = locate_index(gear_image, sources, Path(scratch))
        result = job(
            located,
            new,
            wiring.object_sources(config, located, places),
            target,
            progress,
            stall_s=config.fetch_stall_s,
        )
    if as_json:
        output.print_json(asdict(result))
        return
    where = result.output or "the engine"
    print(
        f"{result.image} in {where}: {result.files} files in {result.objects} objects, "
        f"{output.size(result.layer_bytes)}, {result.seconds:.1f} s"
    )
