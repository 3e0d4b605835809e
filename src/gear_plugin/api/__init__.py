"""Thin servers over the layers below: HTTP for docker, a plain socket for this node."""
