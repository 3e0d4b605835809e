"""
`docker cp` in both directions, `docker export`, `docker import`.
"""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

from tests.engine.differential.side import Side

THEN = 1_560_000_000


def context(folder: Path) -> Path:
    """A folder with things to copy, always the same."""
    if folder.exists():
        return folder
    (folder / "dir/sub").mkdir(parents=True)
    (folder / "file").write_text("from outside\n")
    (folder / "dir/a").write_text("a\n")
    os.link(folder / "dir/a", folder / "dir/a-too")
    (folder / "dir/sub/b").write_bytes(bytes(70_000))
    (folder / "dir/link").symlink_to("sub/b")
    (folder / "link-to-dir").symlink_to("dir")
    (folder / "dir/sub/b").chmod(0o4755)
    (folder / "dir").chmod(0o1770)
    os.chown(folder / "dir/sub/b", 12, 34)
    os.mkfifo(folder / "dir/fifo")
    for path in sorted(folder.rglob("*"), reverse=True):
        os.utime(path, (THEN, THEN), follow_symlinks=False)
    return folder


def copied_in(side: Side) -> None:
    """Files, folders, links; onto files, folders and links of the image; running or not."""
    source = context(side.scratch / "to-copy")
    side.started("d-cp")
    for words in (
        (f"{source}/file", "d-cp:/odd/metadata/moved"),
        (f"{source}/file", "d-cp:/odd/copied/link"),
        (f"{source}/file", "d-cp:/odd/copied/up/"),
        (f"{source}/file", "d-cp:/none/file"),
        (f"{source}/file", "d-cp:/none/"),
        (f"{source}/dir", "d-cp:/odd/metadata/moved.d"),
        (f"{source}/dir/.", "d-cp:/odd/metadata/same.d"),
        (f"{source}/dir", "d-cp:/odd/metadata/appended"),
        ("-a", f"{source}/dir", "d-cp:/odd/copied/with-owners"),
        (f"{source}/link-to-dir", "d-cp:/odd/copied/a-link"),
        ("-L", f"{source}/link-to-dir", "d-cp:/odd/copied/followed"),
        (f"{source}/file", "d-cp:/odd/symlinks/self"),
        (f"{source}/file", "d-cp:/proc/x"),
    ):
        shown = " ".join(words).replace(str(source), "SOURCE")
        side.docker("cp", *words, label=f"docker cp {shown}")
    side.docker("cp", "-", "d-cp:/odd/copied", input=_tar(), label="docker cp - ")
    side.diff("d-cp")
    side.seen("d-cp", "/odd/metadata", "/odd/copied")
    side.do("stop", "-t", "0", "d-cp")
    side.docker("cp", f"{source}/file", "d-cp:/odd/while-stopped", label="docker cp while stopped")
    side.diff("d-cp")
    side.do("commit", "d-cp", "differential/cp:1")
    side.layers("differential/cp:1")


def copied_out(side: Side) -> None:
    """Files, folders and links of the image, and changed ones, with all that tar can say."""
    side.started("d-cp")
    for path in ("/odd/copied", "/odd/copied/.", "/odd/names", "/odd/links", "/odd/copied/link"):
        side.copied_out("d-cp", path)
    side.do("exec", "d-cp", "sh", "-c", "cd /odd/copied; rm hard; echo x >> file; mknod n p")
    for path in ("/odd/copied", "/odd/specials", "/odd/modes", "/odd/tar/attributes"):
        side.copied_out("d-cp", path)
    out = side.scratch / "copied-out"
    out.mkdir()
    side.docker("cp", "d-cp:/none", str(out), label="docker cp of nothing")
    side.docker("cp", "-a", "d-cp:/odd/copied", str(out), label="docker cp -a")
    side.docker("cp", "-L", "d-cp:/odd/copied/link", f"{out}/followed", label="docker cp -L")
    listed = subprocess.run(
        ["find", ".", "-printf", "%p %y %m %U:%G %s %l\n"], cwd=out, capture_output=True
    )
    side.note("copied out", sorted(listed.stdout.decode().splitlines()))
    subprocess.run(["rm", "-r", str(out)], check=True)
    side.diff("d-cp")


def exported(side: Side) -> None:
    """A container of the image as it is, changed, and stopped; imported again."""
    side.started("d-out")
    side.exported("d-out")
    code = "cd /odd; rm -r deleted replaced/dir-*; mv metadata/moved links/first; ln links/first x"
    # Most of the image as well, so that the rest is soon imported.
    code += "; rm -rf /opt /usr/share /usr/lib/python* /var /usr/lib/x86_64-linux-gnu/perl*"
    side.do("exec", "d-out", "sh", "-c", code)
    side.exported("d-out")
    side.do("stop", "-t", "0", "d-out")
    archive = side.scratch / "exported.tar"
    side.do("export", "-o", str(archive), "d-out")
    side.do("import", "-c", 'CMD ["sh"]', "-m", "again", str(archive), "differential/again:1")
    archive.unlink()
    side.inspected("differential/again:1", drop=("RootFS", "RepoDigests", "Size", "VirtualSize"))
    side.seen_in("differential/again:1", "/odd")


def _tar() -> str:
    """A tar for `docker cp -`; ASCII, as everything on standard input here."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, kind in (("in", tarfile.DIRTYPE), ("in/x", tarfile.REGTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.uid, member.mtime = kind, 0o711, 77, THEN
            data = b"streamed\n" if kind == tarfile.REGTYPE else b""
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("in/link")
        link.type, link.linkname, link.mtime = tarfile.LNKTYPE, "in/x", THEN
        archive.addfile(link)
    return out.getvalue().decode()


ALL = (copied_in, copied_out, exported)
