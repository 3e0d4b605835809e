"""
An image's layers, bottom to top, into the one tree that a container would see.

Pure: members come from `archive`, content is not touched; the caller hashes
the bytes that won and sets the digests.  Not safe to share between threads.

Rules, and where they come from:

- Whiteouts (OCI image-spec, layer.md, "Whiteouts"): `.wh.NAME` hides NAME of
  the lower layers, `.wh..wh..opq` all that lower layers have in that
  directory; neither touches entries of its own layer, whatever the order.
  Other `.wh..wh.*` names are AUFS's private files and are ignored, but for the
  files in `.wh..wh.plnk`, to which hard links may lead.
- A directory over a directory replaces its metadata and keeps its children;
  anything else replaces what was there.
- A directory that a layer uses and does not name is a directory 0755 root:root
  in the folder that docker unpacks the layer into, and so in the container;
  its mtime, which docker sets to the time of unpacking, is what a lower layer
  has, or 0.
- ACLs are set before the mode, and inherited from directories of the same layer
  that have a default ACL (`acl`).
- A parent that is a symbolic link is followed inside the tree, as Docker's
  untar in a chroot does.
- What overlayfs keeps to itself does not survive: a character device 0:0 is
  its whiteout, so it hides the name, and `trusted.overlay.*` xattrs go.
- The owner 2**32 - 1 is none to chown(2), so Docker leaves such a
  file to root, and a hard link to whom its target belongs.
- Xattrs that Linux refuses, and Docker therefore drops, go as well: unknown
  prefixes, and `user.*` on anything but files and directories.
- A hard link's own header is applied to the inode that it shares, after its
  target's: owner and xattrs, and unless that is a symlink, mode and time.  The
  change of owner takes `security.capability` away, as Linux does (moby
  pkg/archive/archive.go, createTarFile, v20.10.24).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

from gear_plugin.errors import ArchiveMalformed, Unsupported
from gear_plugin.image import acl
from gear_plugin.image.archive import Member
from gear_plugin.image.entry import (
    DEFAULT_DIRECTORY_MODE,
    MAX_PATH_BYTES,
    NO_OWNER,
    NO_XATTRS,
    Directory,
    Inode,
    Kind,
)
from gear_plugin.image.tar_fields import shown
from gear_plugin.image.tree import Tree

_WHITEOUT = b".wh."
_AUFS = b".wh..wh."
_AUFS_LINKS = b".wh..wh.plnk"
_OPAQUE = b".wh..wh..opq"
_MAX_SYMLINKS = 40  # MAXSYMLINKS of Linux
_MAX_DEPTH = MAX_PATH_BYTES // 2 + 1  # a name and a slash each
_OVERLAY_XATTRS = b"trusted.overlay."
_XATTR_PREFIXES = (b"security.", b"trusted.", b"user.")
_ACLS = (acl.ACCESS, acl.DEFAULT)
_CAPABILITY = b"security.capability"


@dataclass(slots=True, eq=False)
class Content(Inode):
    """
    A non-empty regular file, and where its bytes are: layer (0 is the lowest) and offset.

    The place is part of the inode, not beside it: that spares 150 bytes a file.
    """

    layer: int = 0
    offset: int = 0


class Flattened(NamedTuple):
    """
    The merged tree, digests not set yet, and the contents that are left in it.

    `contents` has every non-empty regular file once, by layer and offset, so
    that each layer is read through once from its beginning.
    """

    tree: Tree
    contents: list[Content]


def flatten(layers: Sequence[Iterable[Member]]) -> Flattened:
    """
    Merge *layers*, the lowest first; each is iterated once, in this order.

    Raises ArchiveMalformed for what no untar could do (a hard link to
    nothing, a symlink loop) and Unsupported for directories nested too deep.
    Other limits of Linux (long names, huge files) are the index writer's.
    """
    merge = _Merge()
    for number, members in enumerate(layers):
        merge.apply(number, members)
    return Flattened(merge.tree, merge.contents())


class _Merge:
    """The state of the merge: everything up to the layer applied last."""

    def __init__(self) -> None:
        self.tree = Tree()
        # Parents already resolved; emptied whenever a directory or symlink
        # goes away, since only then can a path come to mean something else.
        self._parents: dict[bytes, Directory] = {}
        # Symbolic links of the layer that is being applied.
        self._own_links: set[Inode] = set()
        # Its directories, each with its default ACL: what it names or uses.
        self._own: dict[Directory, bytes | None] = {}
        # Equal xattrs are one mapping: security labels are on every file.
        self._xattrs: dict[tuple[tuple[bytes, bytes], ...], Mapping[bytes, bytes]] = {}

    def contents(self) -> list[Content]:
        found = [inode for inode in self.tree.inodes() if isinstance(inode, Content)]
        # By one number after the other: pairs as keys would be an object a file.
        found.sort(key=attrgetter("offset"))
        found.sort(key=attrgetter("layer"))
        return found

    def apply(self, layer: int, members: Iterable[Member]) -> None:
        self._own_links.clear()
        self._own = {self.tree.root: None}
        self._parents.clear()
        # All whiteouts first: they are about the lower layers alone.  What waits
        # is the inodes of the tree to be, as members would be half as large again.
        waiting: list[Member | tuple[bytes, Inode]] = []
        for member in members:
            if _is_link_target(member) or not self._whiteout(member.name):
                waiting.append(self._waiting(layer, member))
        for entry in waiting:
            if isinstance(entry, Member):
                self._add(entry)
            else:
                self._add_inode(*entry)
        self._remove(self.tree.root, _AUFS_LINKS)

    def _whiteout(self, path: bytes) -> bool:
        """Whether *path* is a whiteout or AUFS's own; if a whiteout, it is done."""
        if _WHITEOUT not in path:
            return False
        folder, _, name = path.rpartition(b"/")
        if name == _OPAQUE:
            parent = self._resolve(folder, create=False)
            if parent is not None:
                parent.children.clear()
                self._parents.clear()
                self._resolve(folder, create=True)
            return True
        if any(part.startswith(_AUFS) for part in path.split(b"/")):
            return True
        if not name.startswith(_WHITEOUT):
            return False
        hidden = name.removeprefix(_WHITEOUT)
        if hidden in (b"", b".", b".."):
            raise ArchiveMalformed(f"layer: a whiteout of nothing: {shown(path)}")
        parent = self._resolve(folder, create=False)
        if parent is not None:
            self._remove(parent, hidden)
            self._resolve(folder, create=True)
        return True

    def _waiting(self, layer: int, member: Member) -> Member | tuple[bytes, Inode]:
        """What is kept of *member* until the layer's whiteouts are done."""
        kind = member.kind
        is_whiteout = kind is Kind.CHAR and member.major == 0 and member.minor == 0
        if not member.name or is_whiteout or kind is Kind.DIR or kind is Kind.HARDLINK:
            return member
        inode = (Content if member.size else Inode)(
            kind,
            member.mode,
            *_owner(member, 0, 0),
            member.applied_mtime_ns,
            member.size,
            member.link,
            member.major,
            member.minor,
            self._carried(kind, member.xattrs),
        )
        if isinstance(inode, Content):
            inode.layer, inode.offset = layer, member.data_offset
        return member.name, inode

    def _carried(self, kind: Kind, xattrs: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
        kept = _carried(kind, xattrs)
        return self._xattrs.setdefault(tuple(kept.items()), kept) if kept else NO_XATTRS

    def _add(self, member: Member) -> None:
        if not member.name:
            if member.kind is not Kind.DIR:
                raise ArchiveMalformed(f"layer: the root is a {member.kind.value}")
            self._update(self.tree.root, member, None)
            return
        parent, name = self._place(member.name)
        if member.kind is Kind.DIR:
            self._add_directory(parent, name, member)
        elif member.kind is Kind.HARDLINK:
            target = self._link_target(member)
            _relink(target, member)
            self._put(parent, name, target)
        else:
            self._remove(parent, name)  # a device 0:0

    def _add_inode(self, path: bytes, inode: Inode) -> None:
        parent, name = self._place(path)
        if inode.kind is Kind.SYMLINK:
            self._own_links.add(inode)
        elif (inherited := self._own[parent]) is not None or inode.xattrs:
            inode.xattrs = _settled(inode, inherited)
        self._put(parent, name, inode)

    def _place(self, path: bytes) -> tuple[Directory, bytes]:
        """The directory that *path* lies in, made if it is missing, and its last name."""
        folder, _, name = path.rpartition(b"/")
        return self._parents.get(folder) or self._parent(folder), name

    def _add_directory(self, parent: Directory, name: bytes, member: Member) -> None:
        existing = parent.children.get(name)
        if not isinstance(existing, Directory):
            existing = Directory()
            self._put(parent, name, existing)
        self._update(existing, member, None if existing in self._own else self._own[parent])

    def _update(self, directory: Directory, member: Member, inherited: bytes | None) -> None:
        directory.mode = member.mode
        directory.uid, directory.gid = _owner(member, 0, 0)
        directory.mtime_ns = member.applied_mtime_ns
        directory.xattrs = self._carried(member.kind, member.xattrs)
        self._take(directory, inherited)

    def _imply(self, directory: Directory, parent: Directory) -> None:
        """*directory* lies on the way to something of this layer, which does not name it."""
        directory.mode = DEFAULT_DIRECTORY_MODE
        directory.uid = directory.gid = 0
        directory.xattrs = NO_XATTRS
        self._take(directory, self._own[parent])

    def _take(self, directory: Directory, inherited: bytes | None) -> None:
        """Make *directory* one of this layer's."""
        if inherited is not None or directory.xattrs:
            directory.xattrs = _settled(directory, inherited)
        self._own[directory] = directory.xattrs.get(acl.DEFAULT)

    def _link_target(self, member: Member) -> Inode:
        folder, _, name = member.link.rpartition(b"/")
        parent = self._resolve(folder, create=False)
        target = parent.children.get(name) if parent is not None else None
        if target is None:
            raise ArchiveMalformed(
                f"layer: {shown(member.name)} is a hard link to {shown(member.link)},"
                " which is not there"
            )
        if isinstance(target, Directory):
            raise ArchiveMalformed(f"layer: {shown(member.name)} is a hard link to a directory")
        return target

    def _put(self, parent: Directory, name: bytes, inode: Inode) -> None:
        self._remove(parent, name)
        parent.children[name] = inode

    def _remove(self, parent: Directory, name: bytes) -> None:
        removed = parent.children.pop(name, None)
        if removed is not None and (removed.kind is Kind.DIR or removed.kind is Kind.SYMLINK):
            self._parents.clear()

    def _parent(self, path: bytes) -> Directory:
        """The directory at *path*, made if it is missing."""
        directory = self._resolve(path, create=True)
        assert directory is not None
        self._parents[path] = directory
        return directory

    def _resolve(self, path: bytes, *, create: bool) -> Directory | None:
        """
        The directory at *path*; symbolic links of this same layer are followed.

        docker unpacks each layer into a folder of its own, where the links of
        lower layers cannot be seen: a directory takes their place (moby
        daemon/graphdriver/overlay2, ApplyDiff).  With *create* missing
        directories are made, and one takes the place of anything else that is
        in the way; without, both give None.
        """
        trail = [self.tree.root]
        todo = path.split(b"/")[::-1] if path else []
        followed = 0
        while todo:
            name = todo.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                if len(trail) > 1:
                    trail.pop()
                continue
            node = trail[-1].children.get(name)
            if node in self._own_links:
                assert node is not None
                followed += 1
                if followed > _MAX_SYMLINKS:
                    raise ArchiveMalformed(f"layer: too many symbolic links in {shown(path)}")
                if node.target.startswith(b"/"):
                    del trail[1:]
                todo.extend(node.target.split(b"/")[::-1])
                continue
            if not isinstance(node, Directory):
                if not create:
                    return None
                node = Directory()
                self._put(trail[-1], name, node)
            if create and node not in self._own:
                self._imply(node, trail[-1])
            trail.append(node)
            if len(trail) > _MAX_DEPTH:
                raise Unsupported(f"layer: nested deeper than Linux allows: {shown(path)}")
        return trail[-1]


def _is_link_target(member: Member) -> bool:
    """Whether this is a file of AUFS that is there for hard links to it alone."""
    folder, _, base = member.name.rpartition(b"/")
    return member.kind is Kind.FILE and folder == _AUFS_LINKS and not base.startswith(_WHITEOUT)


def _settled(inode: Inode, inherited: bytes | None) -> Mapping[bytes, bytes]:
    """The xattrs of *inode* once it has its mode, in a directory with a default ACL or None."""
    if inherited is None and not inode.xattrs.keys() & set(_ACLS):
        return inode.xattrs  # shared with others
    xattrs = dict(inode.xattrs)
    if inherited is not None:
        directory = inode.kind is Kind.DIR
        xattrs = {**acl.inherited(inherited, inode.mode, directory=directory), **xattrs}
    for name, kept in ((acl.ACCESS, _after_chmod), (acl.DEFAULT, _default)):
        if name in xattrs:
            value = kept(inode, xattrs.pop(name))
            if value is not None:
                xattrs[name] = value
    return dict(sorted(xattrs.items())) or NO_XATTRS


def _after_chmod(inode: Inode, value: bytes) -> bytes | None:
    return acl.after_chmod(value, inode.mode)


def _default(inode: Inode, value: bytes) -> bytes | None:
    return acl.default(value) if inode.kind is Kind.DIR else None


def _relink(inode: Inode, link: Member) -> None:
    """What unpacking one more name of *inode* does to it."""
    inode.uid, inode.gid = _owner(link, inode.uid, inode.gid)
    kept = {name: value for name, value in inode.xattrs.items() if name != _CAPABILITY}
    inode.xattrs = _carried(inode.kind, {**kept, **link.xattrs})
    if inode.kind is not Kind.SYMLINK:
        inode.mode, inode.mtime_ns = link.mode, link.applied_mtime_ns
        inode.xattrs = _settled(inode, None)


def _owner(member: Member, uid: int, gid: int) -> tuple[int, int]:
    """The member's owner; what it leaves as it is stays *uid* and *gid*."""
    return (
        uid if member.uid == NO_OWNER else member.uid,
        gid if member.gid == NO_OWNER else member.gid,
    )


def _carried(kind: Kind, xattrs: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
    """Those of *xattrs* that an inode of this *kind* has in a container."""
    if not xattrs:
        return NO_XATTRS
    takes_user = kind is Kind.FILE or kind is Kind.DIR
    takes_acls = kind is not Kind.SYMLINK
    kept = {
        name: value
        for name, value in sorted(xattrs.items())
        if (name.startswith(_XATTR_PREFIXES) or (takes_acls and name in _ACLS))
        and not name.startswith(_OVERLAY_XATTRS)
        and (takes_user or not name.startswith(b"user."))
    }
    return kept or NO_XATTRS
