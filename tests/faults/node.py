"""The node that the fault tests break."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gear_plugin.content import DirectoryStore, LocalClient
from gear_plugin.digest import Digest
from gear_plugin.errors import GearError
from gear_plugin.image import Inode, Kind, Tree
from gear_plugin.rootfs import mounts, unmount
from tests.engine.netns import inside
from tests.unit.image.indexes import index
from tests.unit.layers.layer_damage import whole
from tests.unix_http import UnixConnection
from tests.waiting import PATIENCE_S, eventually


class Node:
    """
    A node on *base*: its folders, a store with the objects of *files*, and
    `gear graphdriver`.  *settings* go to it as GEAR_ variables.

    *store*: one that others use, too; *netns*: the network namespace it lives in.
    """

    def __init__(
        self,
        base: Path,
        files: Mapping[str, bytes],
        *,
        store: Path | None = None,
        netns: str = "",
        **settings: object,
    ) -> None:
        self.base, self.files, self.netns = base, dict(files), netns
        self.root, self.store = base / "gear", store or base / "store"
        base.mkdir(parents=True, exist_ok=True)
        # The sockets' paths must be short.
        self.run = Path(tempfile.mkdtemp(prefix="gear-node-"))
        self.log = base / "log"
        # Without profiles what is read is what a test opens.
        defaults = {"fetch_stall_s": 2, "fetch_timeout_s": 5, "log_level": "debug"}
        defaults |= {"start_profiles": "false"}
        values = {"root": self.root, "run": self.run, "store": self.store, **defaults, **settings}
        self._environment = {
            **os.environ,
            **{f"GEAR_{name.upper()}": str(value) for name, value in values.items()},
        }
        self.objects = DirectoryStore.create(self.store)
        for content in files.values():
            self.put(content)
        self.erofs, self.manifest = index(_tree(files), chunks={}, profile=())
        self.image = Digest.of(self.erofs)
        self._supervisor: subprocess.Popen[bytes] | None = None

    def settings(self, **settings: object) -> None:
        """Other settings from the next start on."""
        self._environment |= {f"GEAR_{name.upper()}": str(v) for name, v in settings.items()}

    def settings_of_others(self, **variables: str | None) -> None:
        """Environment variables from the next start on; None: not there."""
        for name, value in variables.items():
            self._environment.pop(name, None)
            if value is not None:
                self._environment[name] = value

    def forget_setting(self, name: str) -> None:
        """The setting's default from the next start on."""
        self._environment.pop(f"GEAR_{name.upper()}", None)

    # --- the store ------------------------------------------------------------

    def put(self, content: bytes) -> None:
        """Put an object into the store."""
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            self.objects.put(Digest.of(content), Path(file.name))

    def stored(self, name: str) -> Path:
        """The file in the store that holds the object of the file *name*."""
        path = self.store / "objects" / Digest.of(self.files[name]).shard_path
        return path if path.exists() else path.with_name(path.name + ".zst")

    def replace(self, name: str, content: bytes, *, suffix: str = "") -> None:
        """Make the store hold something else under the name of an object."""
        path = self.store / "objects" / Digest.of(self.files[name]).shard_path
        for old in (path, path.with_name(path.name + ".zst")):
            old.unlink(missing_ok=True)
        path.with_name(path.name + suffix).write_bytes(content)

    # --- the processes --------------------------------------------------------

    def start(self) -> None:
        """Start the supervisor, and wait until it serves."""
        command = [sys.executable, "-m", "gear_plugin", "graphdriver", "--socket", self._socket]
        with self.log.open("ab") as log:
            self._supervisor = subprocess.Popen(
                inside(self.netns, command),
                env=self._environment,
                stderr=log,
                stdout=log,
            )
        eventually(self._is_ready, "the node is ready")

    @property
    def is_running(self) -> bool:
        """Whether it was started, and not stopped since."""
        return self._supervisor is not None

    def stop(self) -> None:
        """SIGTERM, and wait."""
        if self._supervisor is not None:
            self._supervisor.terminate()
            self._supervisor.wait(30)
            self._supervisor = None

    def pid(self, part: str) -> int | None:
        """The process that is `client`, `fuse` or `api` now."""
        assert self._supervisor is not None
        pid = self._supervisor.pid
        word = {"client": b"client", "fuse": b"run-fuse", "api": b"run-api"}[part]
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            try:
                if word in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
                    return int(child)
            except (FileNotFoundError, ProcessLookupError):
                continue
        return None

    def kill(self, part: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to the part, and wait until that process is gone; not for the next one."""
        eventually(lambda: self.pid(part), f"there is a {part}")
        pid = self.pid(part)
        if pid is not None:
            os.kill(pid, number)
            eventually(lambda: self.pid(part) != pid, f"the {part} is gone")

    def await_client(self) -> None:
        """Wait until a client answers."""

        def answers() -> bool:
            try:
                self.client(patience_s=0).status()
            except GearError:
                return False
            return True

        eventually(answers, "a client answers")

    def await_driver(self) -> None:
        """Wait until the plugin socket answers."""

        def answers() -> bool:
            try:
                self.call("Status")
            except Exception:
                return False
            return True

        eventually(answers, "the driver answers")

    def client(self, *, patience_s: float = PATIENCE_S) -> LocalClient:
        """The client's socket."""
        return LocalClient(self.run / "client.sock", PATIENCE_S, patience_s=patience_s)

    def said(self, pattern: str) -> list[str]:
        """The lines of the log that match."""
        return [line for line in self.log.read_text().splitlines() if re.search(pattern, line)]

    def close(self) -> None:
        """End everything and leave no mount."""
        try:
            self.stop()
        finally:
            for point in [point for point, _ in mounts()][::-1]:
                if self.base in point.parents or self.run in point.parents:
                    unmount(point, lazy=True)
            shutil.rmtree(self.run, ignore_errors=True)

    # --- what dockerd would ask ------------------------------------------------

    def call(self, name: str, **message: object) -> dict[str, Any]:
        """
        One call of the GraphDriver protocol; an error is a DriverError.

        Asked again, as dockerd does, when the connection breaks: a driver that
        was killed a moment ago may still have taken it, or there is no new one yet.
        """
        body = json.dumps(message).encode()
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self._post(f"/GraphDriver.{name}", body)
            except (
                ConnectionError,
                http.client.IncompleteRead,
            ):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def pull(self, layer: bytes | None = None, name: str = "index") -> None:
        """Create the layer *name* and apply a tar to it (default: the image's index layer)."""
        self.call("Create", ID=name, Parent="")
        self.pull_into(name, layer)

    def pull_into(self, name: str, layer: bytes | None = None) -> None:
        """Apply a tar to a layer that exists (default: the image's index layer)."""
        data = whole(self.erofs, self.manifest) if layer is None else layer
        self._post(f"/GraphDriver.ApplyDiff?id={name}&parent=", data)

    def container(self, name: str = "container") -> Path:
        """Mount a container of the image and return its tree."""
        self.call("CreateReadWrite", ID=name, Parent="index")
        return Path(self.call("Get", ID=name, MountLabel="")["Dir"])

    @property
    def _socket(self) -> str:
        return str(self.run / "plugin.sock")

    def _is_ready(self) -> bool:
        assert self._supervisor is not None
        assert self._supervisor.poll() is None, self.log.read_text()[-3000:]
        try:
            self.call("Status")
            self.client(patience_s=0).status()
        except Exception:
            return False
        return (self.run / "fuse.json").exists()

    def _post(self, path: str, body: bytes) -> dict[str, Any]:
        connection = UnixConnection(self._socket, PATIENCE_S)
        try:
            connection.request("POST", path, body)
            answer = connection.getresponse()
            found: dict[str, Any] = json.loads(answer.read())
        finally:
            connection.close()
        if answer.status != 200:
            raise DriverError(answer.status, str(found.get("Err")))
        return found


class DriverError(Exception):
    """What docker would show: status and text."""


def _tree(files: Mapping[str, bytes]) -> Tree:
    tree = Tree()
    for name, content in files.items():
        tree.root.children[name.encode()] = Inode(
            *(Kind.FILE, 0o644, 0, 0, 0), size=len(content), digest=Digest.of(content)
        )
    return tree
