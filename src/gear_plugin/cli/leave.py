"""
`gear leave`: a node goes from its cluster.
"""

from __future__ import annotations

import sys

import click

from gear_plugin.cli import wiring
from gear_plugin.cli.output import as_json, print_json
from gear_plugin.config import Config
from gear_plugin.content import LocalClient
from gear_plugin.errors import DaemonUnavailable, NotFound

_ANSWER_S = 30.0
"""The client asks the manager, and gives it less."""


@click.command()
@as_json
@click.pass_obj
def leave(config: Config, as_json: bool) -> None:
    """
    Take this machine's nodes out of their cluster.

    Containers run on, and missing files come from the store. A node joins
    again when its client starts the next time with the setting `manager`.

    \b
        sudo gear leave
    """
    left = []
    for place in wiring.nodes(config):
        if place.run is None:
            continue
        client = LocalClient(place.run / "client.sock", _ANSWER_S)
        try:
            found = client.cluster()
            client.leave()
        except (DaemonUnavailable, NotFound):
            continue
        left.append({"node": found["node"], "cluster": found["cluster"]})
        print(f"{place.name}: left cluster {found['cluster']}", file=sys.stderr)
    if not left:
        raise NotFound("no client that is in a cluster answers on this machine")
    if as_json:
        print_json(left)
