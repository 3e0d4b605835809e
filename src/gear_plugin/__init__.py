"""
Gear: lazy, file-level deduplicated Docker images.

The packages, from the bottom up: `image` (pure formats), `content` (bytes by
digest), `catalog` (what is known), `rootfs` (trees under a path), `layers`
(what dockerd calls a layer), `jobs` (long work), `api` (HTTP), `cli` (argv).
Imports point down; docs/architecture.md shows why.
"""

__version__ = "0.1.0"
