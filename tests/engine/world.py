"""
What a test, or the demo, does with the real parts: the `gear` command against
an engine, and a node that runs on the plugin, seen from outside.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.engine.engine import Engine
from tests.waiting import eventually


@dataclass(frozen=True)
class Gear:
    """The `gear` command against engine A, the store and a catalog of its own."""

    engine: Engine
    root: Path
    store: Path

    @property
    def catalog(self) -> str:
        return f"sqlite://{self.store}/catalog.sqlite"

    def __call__(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `gear WORDS...`."""
        command = [sys.executable, "-m", "gear_plugin", "--host", self.engine.host]
        command += ["--root", str(self.root), "--store", str(self.store)]
        command += ["--catalog", self.catalog, *words]
        environ = {**os.environ, **self.engine.environ}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=600, check=False, env=environ
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done


@dataclass(frozen=True)
class Node:
    """Engine B, with what a test may see of the plugin from outside."""

    engine: Engine
    store: Path
    way: str = "auto"

    @functools.cached_property
    def plugin_id(self) -> str:
        """What the engine calls the plugin; an upgrade keeps it."""
        return self.engine.docker("plugin", "inspect", "gear", "-f", "{{.Id}}").stdout.strip()

    @property
    def inner_root(self) -> Path:
        """The plugin's /var/lib/gear, as the host sees it."""
        return self.engine.data_root / "plugins" / self.plugin_id / "propagated-mount"

    @property
    def plugin_socket(self) -> Path:
        """Where the engine calls the plugin; before docker 24 not below its exec root."""
        folders = (self.engine.exec_root / "plugins", Path("/run/docker/plugins"))
        return next(path for f in folders if (path := f / self.plugin_id / "gear.sock").exists())

    def cached(self) -> set[str]:
        """The digests (hex) in the node's public cache."""
        walked = os.walk(self.inner_root / "public")
        return {Path(folder).name + name for folder, _, names in walked for name in names}

    def cached_bytes(self) -> int:
        """The bytes of the objects in the node's public cache."""
        return sum(path.stat().st_size for path in (self.inner_root / "public").glob("*/*"))

    def fuse_pid(self) -> int:
        """The plugin's FUSE daemon."""
        return self.process("run-fuse")

    def process(self, word: str) -> int:
        """The plugin's process whose command line has *word*, by its cgroup; 0: there is none."""
        found = self.plugin_id
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    group = (entry / "cgroup").read_text()
                except OSError:
                    continue
                if word.encode() in words and found in group:
                    return int(entry.name)
        return 0

    def kill_plugin(self) -> int:
        """
        kill -9 of the whole plugin; its process until then.

        dockerd looks for the socket of a plugin that it has started every 3 s,
        and disables one that ends meanwhile: nothing starts it again then.  So
        one that was just started is left alone until it has been seen.
        """
        process = self.process("graphdriver")
        eventually(lambda: _age_s(process) > 7, what="dockerd has seen the plugin")
        os.kill(process, signal.SIGKILL)
        return process

    def image(self, ref: str) -> str:
        """The index digest of a pulled Gear image."""
        text = self.engine.docker("image", "inspect", ref).stdout
        data: dict[str, Any] = json.loads(text)[0]["GraphDriver"]["Data"]
        return str(data["GearIndex"])

    def forget_cache(self) -> None:
        """Remove every image, and then all that is cached."""
        images = self.engine.docker("images", "-q").stdout.split()
        if images:
            self.engine.docker("rmi", "-f", *sorted(set(images)))
        for layer in ("public", "private"):
            for folder, _, names in os.walk(self.inner_root / layer):
                for name in names:
                    Path(folder, name).unlink(missing_ok=True)


def install(engine: Engine, ref: str, store: Path, *settings: str) -> None:
    """Install the plugin as a user would, on an engine that runs another driver."""
    words = ("plugin", "install", "--grant-all-permissions", "--alias", "gear", ref)
    engine.docker(*words, f"store_dir.source={store}", *settings)


def _age_s(process: int) -> float:
    """For how long a process has been running (proc(5), /proc/pid/stat, field 22)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
