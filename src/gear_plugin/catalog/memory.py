"""
A catalog and a roster in memory: the contracts' simplest reading, for tests.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Collection, Mapping

from gear_plugin.catalog.base import ImageRecord
from gear_plugin.catalog.roster import Report
from gear_plugin.cluster import Member, Members, Token
from gear_plugin.digest import Digest
from gear_plugin.errors import ContentNotFound, ImageNotFound
from gear_plugin.names import ImageId


class MemoryCatalog:
    """Records in a dictionary; gone with the process."""

    def __init__(self) -> None:
        self._images: dict[ImageId, tuple[ImageRecord, dict[str, Digest]]] = {}
        self._loose: dict[str, Digest] = {}
        self._lock = threading.Lock()

    def put_image(self, record: ImageRecord, objects: Mapping[str, Digest]) -> None:
        checked = {Digest.from_hex(oid).hex: digest for oid, digest in objects.items()}
        with self._lock:
            self._images[record.image] = (record, checked)
            for oid in checked:
                self._loose.pop(oid, None)

    def get_image(self, image: ImageId) -> ImageRecord:
        return self._get(image)[0]

    def list_images(self) -> list[ImageRecord]:
        with self._lock:
            records = [record for record, _ in self._images.values()]
        return sorted(records, key=lambda record: (record.image.name, record.image.tag))

    def remove_image(self, image: ImageId) -> bool:
        with self._lock:
            return self._images.pop(image, None) is not None

    def resolve(self, oid: str) -> Digest:
        Digest.from_hex(oid)
        with self._lock:
            for _, objects in self._images.values():
                if oid in objects:
                    return objects[oid]
            if oid in self._loose:
                return self._loose[oid]
        raise ContentNotFound(f"no image has an object {oid}")

    def objects_of(self, image: ImageId) -> frozenset[Digest]:
        return frozenset(self._get(image)[1].values())

    def name_object(self, oid: str, digest: Digest) -> None:
        with self._lock:
            self._loose[Digest.from_hex(oid).hex] = digest

    def loose_objects(self) -> frozenset[Digest]:
        with self._lock:
            return frozenset(self._loose.values())

    def close(self) -> None:
        pass

    def _get(self, image: ImageId) -> tuple[ImageRecord, dict[str, Digest]]:
        with self._lock:
            if image not in self._images:
                raise ImageNotFound(f"the catalog has no image {image}; push it first")
            return self._images[image]


class MemoryRoster:
    """The nodes in a dictionary; gone with the process."""

    def __init__(self) -> None:
        self._token = Token.new()
        self._nodes: dict[str, Member] = {}
        self._version = 0
        self._reports: dict[str, Report] = {}
        self._changed = threading.Condition()  # guards everything

    def identity(self) -> Token:
        return self._token

    def join(self, node: str, address: str) -> Members:
        with self._changed:
            return self._set({node: Member(node, address)})

    def leave(self, node: str) -> Members:
        with self._changed:
            return self._set({node: None})

    def set_live(self, changes: Mapping[str, bool]) -> Members:
        with self._changed:
            wanted = {
                node: dataclasses.replace(self._nodes[node], is_live=is_live)
                for node, is_live in changes.items()
                if node in self._nodes
            }
            return self._set(wanted)

    def members(self) -> Members:
        with self._changed:
            return self._members()

    def wait(self, version: int, timeout_s: float) -> Members:
        with self._changed:
            self._changed.wait_for(lambda: self._version != version, timeout_s)
            return self._members()

    def report(self, manager: str, seen: Collection[str]) -> None:
        with self._changed:
            last = self._reports.get(manager, Report(0, frozenset()))
            self._reports[manager] = Report(last.round + 1, frozenset(seen))

    def reports(self) -> dict[str, Report]:
        with self._changed:
            return dict(self._reports)

    def close(self) -> None:
        pass

    def _members(self) -> Members:
        return Members(self._version, tuple(sorted(self._nodes.values())))

    def _set(self, wanted: Mapping[str, Member | None]) -> Members:
        before = dict(self._nodes)
        for node, member in wanted.items():
            if member is None:
                self._nodes.pop(node, None)
            else:
                self._nodes[node] = member
        if self._nodes != before:
            self._version += 1
            self._changed.notify_all()
        return self._members()
