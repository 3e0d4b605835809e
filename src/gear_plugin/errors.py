"""
Every error Gear raises on purpose, in one tree.

    GearError
    ├── BadInput             the caller's words are wrong; nothing was done
    │   ├── BadName              image name, layer id, volume name
    │   ├── BadDigest            not sha256:<64 lower-case hex>
    │   ├── BadConfig            unknown key, wrong unit, impossible value
    │   └── BadRequest           an HTTP or socket request that does not parse
    ├── NotFound             what was named is not there
    │   ├── ContentNotFound      no source has the object
    │   ├── ImageNotFound
    │   ├── LayerNotFound
    │   └── VolumeNotFound
    ├── Damaged              bytes that are not what they claim to be
    │   ├── ContentCorrupt       an object whose bytes do not hash to its name
    │   ├── ArchiveMalformed     a tar that cannot be parsed or ends too soon
    │   └── IndexDamaged         a Gear index that fails its structure check
    ├── Unsupported          well-formed, but not something Gear can carry
    ├── Conflict             it is there already, or in use
    │   ├── LayerExists
    │   ├── LayerInUse
    │   ├── VolumeExists         with other options
    │   └── VolumeInUse
    ├── Unavailable          another part is down, slow or full; try again
    │   ├── SourceUnavailable    a store, peer or manager did not answer
    │   ├── EngineUnavailable    no Docker engine, or it refused
    │   ├── DaemonUnavailable    the local client or FUSE daemon is down
    │   ├── TimedOut             a wait reached its limit
    │   ├── StorageFull          ENOSPC or EDQUOT
    │   └── StorageUnavailable   a disk of this node is read-only or broken
    ├── AccessDenied         a registry wants a login, or another one
    └── MountFailed          the kernel refused a mount

An expected error is one line for people: what was wrong, then what to do.
Each border owns one table from these to its own terms: the command line
(`cli.EXIT_CODES`), HTTP (`api`), FUSE (`rootfs.fuse`); a test proves every
class has a row.  Foreign exceptions are translated once, where they enter.
"""

from __future__ import annotations


class GearError(Exception):
    """Base of every expected error; `str()` is one line for the user."""


class BadInput(GearError):
    """The caller's words are wrong; nothing was done."""


class BadName(BadInput):
    """An image name, layer id or volume name that does not parse."""


class BadDigest(BadInput):
    """A content id that is not `sha256:` and 64 lower-case hex digits."""


class BadConfig(BadInput):
    """A setting that is unknown, malformed or impossible."""


class BadRequest(BadInput):
    """An HTTP or socket request that does not parse."""


class NotFound(GearError):
    """What was named is not there."""


class ContentNotFound(NotFound):
    """No source has the object."""


class ImageNotFound(NotFound):
    """No such image in the engine, on this node or in the catalog."""


class LayerNotFound(NotFound):
    """The graphdriver has no layer of that id."""


class VolumeNotFound(NotFound):
    """The volume driver has no volume of that name."""


class Damaged(GearError):
    """Bytes that are not what they claim to be."""


class ContentCorrupt(Damaged):
    """An object whose bytes do not hash to its name."""


class ArchiveMalformed(Damaged):
    """A tar stream that cannot be parsed or that ends too soon."""


class IndexDamaged(Damaged):
    """A Gear index that fails its structure check."""


class Unsupported(GearError):
    """Well-formed, but not something Gear can carry."""


class Conflict(GearError):
    """It is there already, or it is in use."""


class LayerExists(Conflict):
    """A layer of that id exists already."""


class LayerInUse(Conflict):
    """The layer is mounted, or another stands on it."""


class VolumeExists(Conflict):
    """A volume of that name exists already and shows something else."""


class VolumeInUse(Conflict):
    """The volume is mounted."""


class Unavailable(GearError):
    """Another part is down, slow or full; the same call may succeed later."""


class SourceUnavailable(Unavailable):
    """A store, peer or manager did not answer."""


class EngineUnavailable(Unavailable):
    """No Docker engine answered, or it refused the call."""


class DaemonUnavailable(Unavailable):
    """The local client or the FUSE daemon is down."""


class TimedOut(Unavailable):
    """A wait reached its limit."""


class StorageFull(Unavailable):
    """The filesystem has no room left (ENOSPC or EDQUOT)."""


class StorageUnavailable(Unavailable):
    """A disk of this node refuses to be written or read, for another reason than being full."""


class AccessDenied(GearError):
    """A registry wants a login, or does not allow this with the one it was given."""


class MountFailed(GearError):
    """The kernel refused a mount."""
