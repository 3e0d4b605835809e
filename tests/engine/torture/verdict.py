"""
What must hold after a torture run, and the report of it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from tests.engine.aftermath import WHOLE, Aftermath
from tests.engine.small_images import SmallImages
from tests.engine.torture.killers import Killers
from tests.engine.torture.workload import LABEL, Findings
from tests.engine.world import Node
from tests.waiting import eventually


@dataclass(frozen=True)
class Verdict:
    """Looks at *node*, whose workers and killers have ended."""

    node: Node
    images: SmallImages
    killers: Killers
    findings: Findings

    def settle(self) -> None:
        """Wait until plugin and engine answer, and remove the containers that are left."""
        docker = self.node.engine.docker
        eventually(lambda: docker("info", check=False).returncode == 0, what="docker info")
        eventually(lambda: Aftermath(self.node).processes() == WHOLE, what="all processes")
        left = docker("ps", "-aq", "--filter", f"label={LABEL}").stdout.split()
        if left:
            docker("rm", "-f", *left)
        left = docker("ps", "-aq").stdout.split()  # of builds that were broken off
        if left:
            docker("rm", "-f", *left)

    def images_verify(self) -> None:
        """Each layer that docker saves hashes to what the image's configuration says."""
        docker = self.node.engine.docker
        for image in sorted(set(docker("images", "-q", "--no-trunc").stdout.split())):
            raw = subprocess.run(
                ["docker", "save", image],
                env={"PATH": "/usr/bin:/bin", **self.node.engine.environ},
                capture_output=True,
                check=False,
                timeout=120,
            )
            if raw.returncode:
                self.findings.add(f"image {image[:19]}: save: {raw.stderr.decode()[-300:]}")
                continue
            for wrong in _wrong_layers(raw.stdout):
                self.findings.add(f"image {image[:19]}: {wrong}")
            self.findings.count("images verified")
        for ref in self.images.both:
            words = ("run", "--rm", "--network", "none", ref, "sh", "-c")
            seen = docker(*words, "sha256sum -c -s /cached.sums /late.sums", check=False)
            if seen.returncode:
                self.findings.add(f"{ref}: {seen.stderr[-300:]}")

    def objects_verify(self) -> None:
        """Every object in the node's cache is what its name says, and one inode with its pins."""
        root = self.node.inner_root
        public = {path.parent.name + path.name: path for path in (root / "public").glob("*/*")}
        for name, path in public.items():
            if hashlib.sha256(path.read_bytes()).hexdigest() != name:
                self.findings.add(f"cache: {name} has wrong bytes")
        for path in (root / "private").glob("*/*/*"):
            name = path.parent.name + path.name
            if name in public and not path.samefile(public[name]):
                self.findings.add(f"cache: {path} is not the public object")
        self.findings.count("objects verified", len(public))

    def df_is_consistent(self) -> None:
        """`docker system df` counts what there is, and its sizes add up."""
        docker = self.node.engine.docker
        text = docker("system", "df", "--format", "{{json .}}").stdout
        rows = {row["Type"]: row for row in map(json.loads, text.splitlines())}
        images = set(docker("images", "-q", "--no-trunc").stdout.split())
        containers = docker("ps", "-aq").stdout.split()
        for kind, count in (("Images", len(images)), ("Containers", len(containers))):
            if int(rows[kind]["TotalCount"]) != count:
                self.findings.add(f"system df: {rows[kind]['TotalCount']} {kind}, not {count}")

    def nothing_leaks(self, before: set[str]) -> None:
        """
        No mounts, layers or processes besides those of what docker knows.

        A layer that dockerd never noted, because it or the plugin was killed at that
        moment, is dockerd's own loss (docs/crash-windows.md): counted, and no
        more of them than calls were broken off.
        """
        after = Aftermath(self.node)
        known, orphans = after.known(), after.orphans()
        for missing in sorted(known - after.layers()):
            self.findings.add(f"docker knows layer {missing[:12]}, the plugin does not")
        half = [name for name in orphans if name.startswith(".tmp-")]
        if half:
            self.findings.add(f"half-made layers are left: {half}")
        self.findings.count("layers that dockerd lost", len(orphans - before))
        broken = sum(self.findings.broken_off.values())
        if len(orphans - before) > 2 * broken:
            self.findings.add(f"{len(orphans)} orphaned layers after {broken} broken calls")
        mounted = after.mounted()
        for layer, times in mounted.items():
            if layer not in orphans or times > 1:
                self.findings.add(f"layer {layer[:12]} is still mounted, {times} times")
        self.findings.count("mounts of lost layers", len(mounted))
        if after.probes():
            self.findings.add(f"probes are left: {after.probes()}")
        if after.processes() != WHOLE:
            self.findings.add(f"processes: {after.processes()}")

    def nothing_outlives_the_engine(self) -> None:
        """Once dockerd has stopped in order, nothing is mounted below its folder."""
        engine = self.node.engine
        root = self.node.inner_root
        engine.live_restore = False
        engine.end()
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        left = [line.split()[4] for line in lines]
        left = [point for point in left if point.startswith(f"{root}/")]
        if left:
            self.findings.add(f"mounted after the end: {left}")

    def logs(self) -> None:
        """Neither the plugin nor the kernel met a bug."""
        text = (self.node.engine.workdir / "dockerd.log").read_text()
        for word in ("Traceback", "internal error", "a bug in"):
            if word in text:
                line = next(line for line in text.splitlines() if word in line)
                self.findings.add(f"{text.count(word)} x {word!r} in the log: {line[:300]}")

    def report(self, seed: int, seconds: float) -> str:
        """What was done and what was found, for people."""
        kills = ", ".join(f"{count} x {name}" for name, count in sorted(self.killers.kills.items()))
        done = ", ".join(f"{count} {what}" for what, count in sorted(self.findings.counts.items()))
        broken = ", ".join(
            f"{count} x {verb}" for verb, count in sorted(self.findings.broken_off.items())
        )
        found = [*self.killers.failures, *self.findings.lines]
        lines = [
            f"torture, seed {seed}, {seconds:.0f} s",
            f"  killed:      {kills or 'nothing'}",
            f"  done:        {done}",
            f"  broken off and repeated: {broken or 'nothing'}",
            f"  findings:    {len(found) or 'none'}",
            *(f"    - {line[:600]}" for line in found[:40]),
        ]
        return "\n".join(lines)


def _wrong_layers(saved: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(saved)) as archive:
        manifest = json.loads(_member(archive, "manifest.json"))[0]
        wanted = json.loads(_member(archive, manifest["Config"]))["rootfs"]["diff_ids"]
        found = [
            f"sha256:{hashlib.sha256(_member(archive, name)).hexdigest()}"
            for name in manifest["Layers"]
        ]
    return [f"layer {a[:19]} is {b[:19]}" for a, b in zip(wanted, found, strict=True) if a != b]


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.getmember(name)
    while member.issym():
        # A layer that the image has twice is a link to its first copy.
        member = archive.getmember(os.path.normpath(f"{Path(name).parent}/{member.linkname}"))
    file = archive.extractfile(member)
    assert file is not None
    return file.read()
