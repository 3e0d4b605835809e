"""A node's main folder and client process for tests of its port: fakes, and an app over them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from gear_plugin.api.client import Collaborators, PortLimits, client_app
from gear_plugin.api.uploads import Uploads
from gear_plugin.catalog import ImageRecord, MemoryCatalog
from gear_plugin.cluster import Token
from gear_plugin.digest import Digest, object_id
from gear_plugin.errors import ContentNotFound
from gear_plugin.names import ImageId

NODE = "0123456789abcdef0123456789abcdef"


class FakeClient:
    """A client process that gets what is in `elsewhere`, when `allowed` is set."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.elsewhere: dict[Digest, bytes] = {}
        self.obtained: list[tuple[Digest, int | None]] = []
        self.error: Exception | None = None
        self.allowed = threading.Event()
        self.allowed.set()
        self.asking = self.most_asking = 0
        self._lock = threading.Lock()

    def obtain(self, digest: Digest, size_bytes: int | None = None) -> None:
        with self._lock:
            self.obtained.append((digest, size_bytes))
            self.asking += 1
            self.most_asking = max(self.most_asking, self.asking)
        try:
            assert self.allowed.wait(30)
            if self.error is not None:
                raise self.error
            if digest not in self.elsewhere:
                raise ContentNotFound(f"no source has {digest}")
            publish(self._root, self.elsewhere[digest])
        finally:
            with self._lock:
                self.asking -= 1

    def status(self) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        return {
            "cached": {"objects": 2, "size_bytes": 8192, "limit_bytes": 0},
            "fetched": {
                "objects": 3,
                "failures": 1,
                "sources": {"store": {"objects": 3, "size_bytes": 77}},
            },
            "completing": {},
        }

    def cluster(self) -> dict[str, Any]:
        return {
            "node": NODE,
            "cluster": "00" * 8,
            "address": "10.0.0.1:2020",
            "members": {"version": 4, "nodes": []},
        }


def publish(root: Path, content: bytes) -> Digest:
    """Have *content* in the public cache below *root*, as the client process does."""
    digest = Digest.of(content)
    path = root / "public" / digest.shard_path
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{threading.get_ident()}")
    temporary.write_bytes(content)
    temporary.rename(path)
    return digest


class _Buffered(FlaskClient):
    """Reads answers to their end and closes them, as a server does."""

    def open(self, *args: Any, buffered: bool = True, **kwargs: Any) -> TestResponse:
        return super().open(*args, buffered=buffered, **kwargs)


class PortNode:
    """The collaborators, and a test client that has the token."""

    def __init__(
        self,
        root: Path,
        *,
        limits: PortLimits | None = None,
        upload_limit: int = 0,
        upload_script: str = "print('{}')",
    ) -> None:
        self.root = root
        self.client = FakeClient(root)
        self.catalog = MemoryCatalog()
        self.token = Token.new()

        def command(verb: str, image: ImageId) -> Sequence[str]:
            return [sys.executable, "-c", upload_script, verb, str(image)]

        self.uploads = Uploads(command)
        self.app = client_app(
            Collaborators(
                token=self.token,
                client=self.client,
                quick_client=self.client,
                root=root,
                resolve=self.catalog.resolve,
                uploads=self.uploads,
                upload_limit=upload_limit,
                limits=limits or PortLimits(),
            )
        )
        self.app.test_client_class = _Buffered
        self.http: FlaskClient = self.app.test_client()
        self.http.environ_base["HTTP_AUTHORIZATION"] = self.token.header()

    def publish(self, content: bytes) -> Digest:
        return publish(self.root, content)

    def record(self, image: str, files: dict[bytes, Digest]) -> None:
        """Have *image* in the catalog, with these paths."""
        name = ImageId.parse(image)
        some = Digest.of(image.encode())
        record = ImageRecord(name, name.gear, some, some, some, len(files), 0, 0)
        objects = {object_id(str(name), path): digest for path, digest in files.items()}
        self.catalog.put_image(record, objects)
