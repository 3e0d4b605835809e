"""
Who is in the cluster, and which nodes keep an object.

    Token             what lets a node or a person in
    Member, Members   the nodes, and the version of the list of them
    Settings          what the cluster gives to each node
    homes             the nodes that keep an object for all others
    route             whom a node asks for an object that it lacks

Pure values: nothing here opens a file or a connection.
docs/decisions/0007-cluster.md says how the parts work together.
"""

from gear_plugin.cluster.homes import homes
from gear_plugin.cluster.members import Member, Members, Settings, parse_address, parse_node
from gear_plugin.cluster.ring import HOMES
from gear_plugin.cluster.route import route
from gear_plugin.cluster.token import Token

__all__ = [
    "HOMES",
    "Member",
    "Members",
    "Settings",
    "Token",
    "homes",
    "parse_address",
    "parse_node",
    "route",
]
