"""
One blob of a registry as a stream that heals itself and checks itself.
"""

from __future__ import annotations

import hashlib
import re
import time

from gear_plugin.errors import ContentCorrupt, ContentNotFound, SourceUnavailable, TimedOut
from gear_plugin.jobs.oci import Descriptor
from gear_plugin.jobs.references import Reference
from gear_plugin.jobs.registry_http import Http, Response

_SKIP_BYTES = 1 << 20


class BlobReader:
    """
    A blob's bytes from its beginning; use it as a context.

    A transfer that breaks is taken up again where it broke.  One thread at a time.
    """

    def __init__(self, http: Http, image: Reference, blob: Descriptor) -> None:
        self._http = http
        self._image = image
        self._blob = blob
        self._hash = hashlib.sha256()
        self._at = 0
        self._response: Response | None = None
        self._slow_since, self._slow_bytes = time.monotonic(), 0

    def __enter__(self) -> BlobReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._drop()

    def read(self, count: int) -> bytes:
        """
        At most *count* bytes, and at least one but at the end, where all was checked.

        Raises ContentNotFound, ContentCorrupt (other bytes than its digest
        and size say), SourceUnavailable (broken too often), TimedOut (too
        slow), AccessDenied.
        """
        host, blob = self._image.host, self._blob
        data = b""
        if self._at < blob.size:
            data = self._http.repeated(host, lambda: self._attempt(count))
            self._check_speed(len(data))
        self._hash.update(data)
        self._at += len(data)
        if self._at > blob.size or (not data and self._hash.digest() != blob.digest.raw):
            raise ContentCorrupt(
                f"the registry {host} sent other bytes than those of {blob.digest} "
                f"in {self._image}; push that image again"
            )
        return data

    def _attempt(self, count: int) -> bytes:
        host = self._image.host
        try:
            if self._response is None:
                self._response = self._open()
            data = self._http.read(self._response, host, count)
            if not data:
                raise SourceUnavailable(f"the registry {host} ends in the middle of a blob")
        except BaseException:
            self._drop()
            raise
        return data

    def _open(self) -> Response:
        """A response that stands where the one before broke."""
        image, at = self._image, self._at
        response = self._http.request(
            "GET",
            image.host,
            f"/v2/{image.repository}/blobs/{self._blob.digest}",
            scope=pull_scope(image),
            headers={"Range": f"bytes={at}-"} if at else {},
        )
        if response.status == 404:
            self._http.finish(response)
            raise ContentNotFound(f"the registry {image.host} lacks {self._blob.digest} of {image}")
        if response.status not in (200, 206):
            raise self._http.failed(response, image.host, f"to give a blob of {image}")
        skip = 0 if response.status == 206 and _begins_at(response, at) else at
        while skip:
            skipped = self._http.read(response, image.host, min(skip, _SKIP_BYTES))
            if not skipped:
                self._http.finish(response)
                raise SourceUnavailable(f"the registry {image.host} ends in the middle of a blob")
            skip -= len(skipped)
        return response

    def _check_speed(self, count: int) -> None:
        """Give up on a registry that sends next to nothing, but that for ever."""
        limits = self._http.limits
        self._slow_bytes += count
        now = time.monotonic()
        if self._slow_bytes >= limits.slow_bytes:
            self._slow_since, self._slow_bytes = now, 0
        elif now - self._slow_since > limits.slow_s:
            raise TimedOut(
                f"the registry {self._image.host} sent only {self._slow_bytes} bytes "
                f"in {limits.slow_s:g} s; try again"
            )

    def _drop(self) -> None:
        if self._response is not None:
            self._http.finish(self._response)
            self._response = None


def pull_scope(image: Reference) -> str:
    """What a token has to allow (distribution docs/spec/auth/scope.md)."""
    return f"repository:{image.repository}:pull"


def _begins_at(response: Response, offset: int) -> bool:
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", f"bytes {offset}-"))
    return found is not None and int(found[1]) == offset
