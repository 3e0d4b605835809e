"""
What the workers do: whole lives of containers, layers applied and removed, images
pulled and removed.  Every step is checked, and asked again when it was broken off.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import random
import subprocess
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.engine import sources
from tests.engine.small_images import CACHED, SmallImages
from tests.engine.torture.killers import Killers
from tests.engine.world import Node

LABEL = "gear-torture"
STEP_S = 180.0
"""A step that still fails after this is a finding; a dockerd's restart takes 10 s."""
CALL_S = 90.0
"""A docker call that has not returned after this hangs."""
_PAUSE_S = 0.5

# Reads all that is known to be cached, again and again, and notes what failed.  The
# file is in the container's own layer, where the host finds it.
_WATCH = """\
while true; do
    sha256sum -c -s /cached.sums 2>> /errors || echo "$(date) cached files" >> /errors
    echo x >> /rounds
    sleep 0.7
done
"""


@dataclass
class Findings:
    """What must not be; shared by all workers."""

    lines: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    broken_off: Counter[str] = field(default_factory=Counter)
    """Calls that failed while something was down, by the verb."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, line: str) -> None:
        with self.lock:
            self.lines.append(line)

    def count(self, what: str, number: int = 1) -> None:
        with self.lock:
            self.counts[what] += number


class Worker:
    """One of the workers; *number* tells them apart, *chance* is its own."""

    def __init__(
        self,
        node: Node,
        images: SmallImages,
        extra: SmallImages,
        killers: Killers,
        findings: Findings,
        chance: random.Random,
        scratch: Path,
        number: int,
    ) -> None:
        self._node = node
        self._images = images
        self._extra = extra
        self._killers = killers
        self._findings = findings
        self._chance = chance
        self._scratch = scratch
        self._prefix = f"torture-{number}"
        self._names = itertools.count()
        self._restarted: set[str] = set()
        """Containers whose restart was broken off: they may have stopped and not started."""

    # --- a container ---------------------------------------------------------

    def lifecycle(self) -> None:
        """Run, look inside, perhaps restart, stop, remove."""
        name = f"{self._prefix}-{next(self._names)}"
        ref = self._chance.choice(self._images.both)
        self._step("run", lambda: self._run(name, ref))
        late = self._chance.random() < 0.5
        for _ in range(self._chance.randrange(1, 4)):
            time.sleep(self._chance.random())
            self._chance.choice((self._exec, self._diff, self._copy))(name)
        if late:
            self._step("exec late", lambda: self._docker("exec", name, *_check("/late.sums")))
        if self._chance.random() < 0.3:
            self._restarted.add(name)
            if not self._restart(name):
                return
            self._exec(name)
        self._look_at_errors(name)
        if self._chance.random() < 0.5:
            self._step("stop", lambda: self._docker("stop", "-t", "0", name))
        self._step("rm", lambda: self._gone(name))
        self._findings.count("lifecycles")

    def _run(self, name: str, ref: str) -> str:
        self._docker("rm", "-f", name, check=False)  # of a run that was broken off
        words = ("run", "-d", "--name", name, "--label", LABEL, "--network", "none", ref)
        return self._docker(*words, "sh", "-c", _WATCH)

    def _restart(self, name: str) -> bool:
        """Restart it; whether it is still there, and not lost to dockerd itself."""
        try:
            self._step("restart", lambda: self._docker("restart", "-t", "0", name))
        except LostByDocker:
            self._findings.count("containers that dockerd lost")
            self._step("rm", lambda: self._gone(name))
            return False
        return True

    def _exec(self, name: str) -> None:
        token = f"{self._chance.random()}"
        script = f"sha256sum -c -s /cached.sums && echo {token} > /token && cat /token"
        said = self._step("exec", lambda: self._docker("exec", name, "sh", "-c", script))
        if said.strip() != token:
            self._findings.add(f"{name}: exec printed {said!r} instead of {token!r}")

    def _diff(self, name: str) -> None:
        said = self._step("diff", lambda: self._docker("diff", name))
        odd = [line for line in said.splitlines() if line[2:] not in _CHANGED]
        if odd:
            self._findings.add(f"{name}: diff shows {odd}")

    def _copy(self, name: str) -> None:
        target = self._scratch / name
        self._step("cp", lambda: self._docker("cp", f"{name}:/cached.sums", str(target)))
        lines = target.read_text().splitlines()
        target.unlink()
        if len(lines) != CACHED:
            self._findings.add(f"{name}: cp gave {len(lines)} lines of /cached.sums")

    def _look_at_errors(self, name: str) -> None:
        """What the container itself saw; read from its layer, without docker."""
        text = self._step("inspect", lambda: self._docker("inspect", name))
        upper = Path(json.loads(text)[0]["GraphDriver"]["Data"]["UpperDir"])
        folder = self._node.inner_root / "containers" / upper.parent.name / "upper"
        if (folder / "errors").exists():
            said = (folder / "errors").read_text().strip()
            if said:
                self._findings.add(f"{name}: a cached file failed: {said[-300:]}")
        rounds = folder / "rounds"
        self._findings.count("rounds over cached files", len(_read(rounds)) // 2)

    def _gone(self, name: str) -> str:
        said = self._docker("rm", "-f", name, check=False, errors=True)
        if "rror" in said and "No such container" not in said:
            raise CallFailed(said)
        return said

    # --- layers --------------------------------------------------------------

    def apply(self) -> str:
        """Make a layer one of three ways, verify it; its image stays.  Returns its name."""
        ref = f"{LABEL}:{self._prefix}-{next(self._names)}"
        content = {f"d{n % 3}/f{n}": self._chance.randbytes(20_000) for n in range(30)}
        way = self._chance.choice((self._import, self._build, self._load))
        way(ref, content)
        sums = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
        with_shell = way != self._import
        if with_shell:
            text = "".join(f"{digest}  /new/{name}\n" for name, digest in sums.items())
            self._step("run --rm", lambda: self._verified(ref, text))
        self._findings.count("applies")
        return ref

    def remove(self, ref: str) -> None:
        """`docker rmi`."""
        self._step("rmi", lambda: self._image_gone(ref))
        self._findings.count("images removed")

    def pull(self) -> None:
        """Pull the second Gear image, run it, remove it; others may do so at the same time."""
        ref = self._chance.choice(self._extra.both)
        words = ("run", "--rm", "--label", LABEL, "--network", "none", ref)
        self._step("run after pull", lambda: self._docker(*words, *_check("/cached.sums")))
        self._docker("rmi", ref, check=False)
        self._findings.count("pulls")

    def _import(self, ref: str, content: dict[str, bytes]) -> None:
        path = self._scratch / f"{ref.rpartition(':')[2]}.tar"
        path.write_bytes(_tar(content))
        self._step("import", lambda: self._docker("import", str(path), ref))
        path.unlink()

    def _build(self, ref: str, content: dict[str, bytes]) -> None:
        folder = self._scratch / ref.rpartition(":")[2]
        for name, data in content.items():
            (folder / "new" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "new" / name).write_bytes(data)
        base = self._chance.choice(self._images.both)
        (folder / "Dockerfile").write_text(f"FROM {base}\nCOPY new /new\nLABEL {LABEL}=1\n")
        words = ("build", "-q", "--network", "none", "--no-cache", "--force-rm", "-t", ref)
        self._step("build", lambda: self._docker(*words, str(folder)))

    def _load(self, ref: str, content: dict[str, bytes]) -> None:
        """An image of two layers, loaded from an archive that is made here."""
        base = _tar({"bin/busybox": _busybox()}, mode=0o755)
        layers = [base, _tar({f"new/{name}": data for name, data in content.items()})]
        path = self._scratch / f"{ref.rpartition(':')[2]}.tar"
        path.write_bytes(_archive(ref, layers))
        self._step("load", lambda: self._docker("load", "-q", "-i", str(path)))
        path.unlink()

    def _verified(self, ref: str, sums: str) -> str:
        script = f"cat > /sums <<E\n{sums}E\nexec /bin/busybox sha256sum -c -s /sums"
        words = ("run", "--rm", "--label", LABEL, "--network", "none", ref)
        return self._docker(*words, "/bin/busybox", "sh", "-c", script)

    def _image_gone(self, ref: str) -> str:
        said = self._docker("rmi", ref, check=False, errors=True)
        if "Error" in said and "No such image" not in said:
            raise CallFailed(said)
        return said

    # --- calls ---------------------------------------------------------------

    def _step(self, what: str, call: Callable[[], str]) -> str:
        """
        The result of *call*, which is made again for as long as it fails near a kill.

        Raises Unexplained: it failed though nothing was killed, or for too long.
        """
        begun = time.monotonic()
        while True:
            started = time.monotonic()
            try:
                return call()
            except CallFailed as error:
                if _is_wrong(what, str(error)):
                    raise Unexplained(f"{self._prefix}: {what}: {error}") from error
                if what == "restart" and any(word in str(error) for word in _DOCKERS_OWN):
                    raise LostByDocker from error
                if not self._killers.near(started):
                    raise Unexplained(f"{self._prefix}: {what}: {error}") from error
                if time.monotonic() - begun > STEP_S:
                    raise Unexplained(f"{self._prefix}: {what}, still: {error}") from error
                self._start_again(str(error))
                with self._findings.lock:
                    self._findings.broken_off[what] += 1
            time.sleep(_PAUSE_S)

    def _start_again(self, said: str) -> None:
        """Start a container whose restart was broken off; any other must be running."""
        if "is not running" in said:
            name = next((name for name in self._restarted if name in said), "")
            if not name:
                state = self._docker("ps", "-a", "--filter", f"label={LABEL}", check=False)
                raise Unexplained(f"{self._prefix}: a container has stopped: {said}\n{state}")
            self._docker("start", name, check=False)

    def _docker(self, *words: str, check: bool = True, errors: bool = False) -> str:
        try:
            done = self._node.engine.docker(*words, check=False, timeout=CALL_S)
        except subprocess.TimeoutExpired as error:
            raise Unexplained(f"{self._prefix}: docker {words[0]} hangs: {words}") from error
        if check and done.returncode:
            raise CallFailed(f"docker {' '.join(words)[:200]}: {done.stderr.strip()[-500:]}")
        return done.stdout + done.stderr if errors else done.stdout


class CallFailed(Exception):
    """docker refused, or was not there."""


class LostByDocker(Exception):
    """dockerd itself cannot do anything with the container any more."""


class Unexplained(Exception):
    """A call failed, and no kill says why."""


_WRONG = ("no such file or directory", "sha256sum: can't open", "FAILED")
"""What is never allowed: a container without its files, or with others."""
_UNCACHED = ("run after pull", "exec late")
_UNFETCHED = ("Transport endpoint is not connected", "Input/output error", "connection abort")
"""What a file that is not on the node may say while the FUSE daemon or the client is away."""
_DOCKERS_OWN = ("already exists", "id already in use", "No such container")
"""
What a dockerd that was killed in the middle of a restart never recovers from, on
any storage driver: its containerd still has a task that it does not know.
"""
_CHANGED = ("/errors", "/rounds", "/token", "/")


def _is_wrong(what: str, said: str) -> bool:
    """Whether no kill excuses what docker, or a command in a container, said."""
    if what in _UNCACHED and any(word in said for word in _UNFETCHED):
        return False
    return any(word in said for word in _WRONG)


def _check(sums: str) -> tuple[str, ...]:
    return ("sha256sum", "-c", "-s", sums)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _busybox() -> bytes:
    return (sources.busybox() / "bin/busybox").read_bytes()


def _tar(content: dict[str, bytes], mode: int = 0o644) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), mode
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _archive(ref: str, layers: list[bytes]) -> bytes:
    """What `docker save` would make of an image with these layers."""
    diff_ids = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Labels": {LABEL: "1"}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    names = [f"layer{n}.tar" for n in range(len(layers))]
    manifest = [{"Config": "config.json", "RepoTags": [ref], "Layers": names}]
    parts = {"config.json": json.dumps(config).encode(), **dict(zip(names, layers, strict=True))}
    return _tar({**parts, "manifest.json": json.dumps(manifest).encode()})
