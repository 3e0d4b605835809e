"""
The `gear` command: parses words, calls one job, prints its result.

Results go to stdout, messages to stderr.  An expected error is one line and
one of EXIT_CODES; a bug is its traceback and 70.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import click

from gear_plugin import __version__, config
from gear_plugin import log as logs
from gear_plugin.cli import (
    completion,
    daemons,
    departure,
    doctor,
    fs,
    images,
    inspect,
    leave,
    manager,
    restore,
    teaching,
    upkeep,
)
from gear_plugin.durable import is_full
from gear_plugin.errors import (
    AccessDenied,
    BadInput,
    Conflict,
    Damaged,
    GearError,
    MountFailed,
    NotFound,
    StorageFull,
    Unavailable,
    Unsupported,
)

EXIT_CODES: tuple[tuple[type[GearError], int], ...] = (
    (BadInput, 2),
    (NotFound, 3),
    (Conflict, 4),
    (Damaged, 5),
    (Unsupported, 6),
    (Unavailable, 7),
    (MountFailed, 8),
    (AccessDenied, 9),
    (GearError, 1),
)
"""The first row whose class fits decides."""

BUG, INTERRUPTED = 70, 130


@click.group(
    cls=teaching.TeachingGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="gear")
@click.option("--config", "file", type=click.Path(path_type=Path), help="Settings file (TOML).")
@click.option("--root", type=click.Path(path_type=Path), help="Gear's main folder.")
@click.option("--store", help="The shared object store: a directory, normally on NFS.")
@click.option("--catalog", help="The metadata database: sqlite:///<path> or etcd://<host>.")
@click.option("--host", help="The Docker engine, as in DOCKER_HOST.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="For stderr."
)
@click.option("--plugin", is_flag=True, hidden=True)
@click.pass_context
def cli(
    context: click.Context,
    file: Path | None,
    root: Path | None,
    store: str | None,
    catalog: str | None,
    host: str | None,
    log_level: str | None,
    plugin: bool,
) -> None:
    """
    Gear: Docker images that start before they are downloaded.

    A Gear image is a small index of an ordinary image, pulled in its place.
    The image's files lie in a shared store, each once, and a node fetches one
    when something first opens it.

    \b
    A first session, on a machine with Docker:
        docker pull nginx:1.25
        gear build nginx:1.25            # makes nginx-gear:1.25
        gear push nginx-gear:1.25        # files to the store, index to the registry
        gear images                      # what there is
    On a node with the plugin (docker plugin install gear/graphdriver):
        docker run nginx-gear:1.25       # pulls the index, starts, fetches what it opens
    Without the plugin, and back again:
        gear fs nginx-gear:1.25 /mnt     # its files in a folder
        gear restore nginx-gear:1.25 --name nginx-again:1.25
    If it does not work:
        sudo gear doctor                 # says what is wrong, and what to do

    `gear help COMMAND` explains one command, with examples.
    """
    flags = {"root": root, "store": store, "catalog": catalog, "docker_host": host}
    flags["log_level"] = log_level
    context.obj = config.load(flags, file=file, bare_names=plugin)
    logs.setup(context.obj.log_level, logs.COMMAND)
    if not cli.commands[context.invoked_subcommand or "help"].hidden:
        for name, meant in config.misspelt(os.environ):
            print(f"gear: {name} is no setting; do you mean {meant}?", file=sys.stderr)


for command in (
    images.build,
    images.push,
    images.images,
    inspect.inspect,
    restore.restore,
    upkeep.remove,
    upkeep.collect,
    upkeep.verify,
    doctor.doctor,
    completion.completion,
    teaching.show_help,
    fs.fs,
    fs.run_fs,
    daemons.graphdriver,
    daemons.client,
    leave.leave,
    manager.manager,
    manager.token,
    manager.nodes,
    daemons.run_api,
    daemons.run_port,
    daemons.run_fuse,
):
    cli.add_command(command)


def exit_code(error: GearError) -> int:
    """The status that the process ends with."""
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))


def main() -> None:
    """Run the command, and exit as EXIT_CODES says."""
    try:
        cli.main(prog_name=completion.PROGRAM, standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except GearError as error:
        print(f"gear: {error}", file=sys.stderr)
        sys.exit(exit_code(error))
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None and is_full(error):
            # No job leaves its own full disk untranslated: this is what stdout is written to.
            print(f"gear: cannot write the result: {error.strerror}", file=sys.stderr)
            # What is left in it would fail once more at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(exit_code(StorageFull()))
        traceback.print_exc()
        sys.exit(BUG)


def entry() -> None:
    """
    The console entry point.

    What works on a share must end all the same if that hangs (`departure`).
    """
    if not {"push", "rm", "gc", "verify"}.isdisjoint(sys.argv):
        departure.run(main, interrupted=INTERRUPTED)
    main()
