"""What the driver answers when docker, or the stream, is not as it should be."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import socket
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.conftest import Layers
from tests.conformance.driver import Driver, Refused
from tests.faults.node import Node

pytestmark = pytest.mark.root


def tar(*names: str, size: int = 10) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = size
            archive.addfile(member, io.BytesIO(b"x" * size))
    return out.getvalue()


@pytest.mark.parametrize("name", ["Get", "GetMetadata", "Diff", "Changes", "DiffSize"])
def test_an_unknown_layer_is_named(driver: Driver, name: str) -> None:
    with pytest.raises(Refused, match="no-such-layer") as caught:
        driver.call(name, ID="no-such-layer")
    assert caught.value.status != 200 and "\n" not in caught.value.text


@pytest.mark.parametrize("name", ["Create", "CreateReadWrite"])
def test_a_layer_is_made_once_and_on_what_there_is(
    driver: Driver, layers: Layers, name: str
) -> None:
    there = layers()
    with pytest.raises(Refused, match="exists"):
        driver.call(name, ID=there)
    with pytest.raises(Refused, match="no-such-parent"):
        driver.call(name, ID=f"{there}-child", Parent="no-such-parent")
    assert not driver.exists(f"{there}-child")


@pytest.mark.parametrize("layer", ["..", ".", "a/b", "../x", "/etc", "a\0b", "x" * 300, "ü", " "])
def test_ids_that_are_no_names_are_refused(driver: Driver, folder: Path, layer: str) -> None:
    before = sorted(os.listdir(folder))
    for name in ("Create", "Get", "Put", "Remove", "Diff"):
        with pytest.raises(Refused):
            driver.call(name, ID=layer)
    assert sorted(os.listdir(folder)) == before


@pytest.mark.parametrize("body", [b"", b"\n", b"[]", b"null", b"{", b'"x"', b'{"ID": 5}'])
@pytest.mark.parametrize("name", ["Create", "Remove", "Put", "Get", "Init"])
def test_an_empty_or_odd_body_is_an_error(driver: Driver, name: str, body: bytes) -> None:
    """
    docker repeats a call whose connection broke with an empty body, and takes 200 for done.
    """
    with pytest.raises(Refused) as caught:
        driver.raw(name, body)
    assert caught.value.status == 400


def test_an_unknown_call_is_answered_in_json(driver: Driver) -> None:
    with pytest.raises(Refused) as caught:
        driver.call("Frobnicate")
    assert caught.value.status == 404 and "<" not in caught.value.text


@pytest.mark.parametrize(
    "data", [b"", b"no tar at all", tar("f")[:700], tar("f")[:1024], bytes(511)]
)
def test_what_is_no_whole_tar_leaves_the_layer_empty(
    driver: Driver, layers: Layers, data: bytes
) -> None:
    layer = layers()
    with pytest.raises(Refused):
        driver.apply(layer, "", data)
    with driver.mounted(layer) as tree:
        assert os.listdir(tree) == []
    assert driver.apply(layer, "", tar("f")) == 10
    with driver.mounted(layer) as tree:
        assert os.listdir(tree) == ["f"]


def test_a_stream_that_is_cut_off_is_no_layer(driver: Driver, layers: Layers, folder: Path) -> None:
    """
    docker hung up: whole members had come, but not the end.
    """
    layer = layers()
    driver.broken_off(layer, "", tar("f"))
    deadline = time.monotonic() + 30
    while (folder / layer / "applying").exists() or not (folder / layer / "upper").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with driver.mounted(layer) as tree:
        assert os.listdir(tree) == []


def test_chunks_that_are_none_are_a_broken_stream(
    driver: Driver, layers: Layers, node: Node
) -> None:
    """
    In one line, and not as a bug of ours.
    """
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(node.run / "plugin.sock"))
        line.sendall(
            f"POST /GraphDriver.ApplyDiff?id={layers()}&parent= HTTP/1.1\r\n"
            "Host: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".encode()
        )
        answer = b"".join(iter(lambda: line.recv(4096), b""))
    assert b"broke off" in answer


@pytest.mark.parametrize("layer", ["no-such-layer", "a%2Fb", ""])
def test_a_tar_for_no_layer_is_read_and_refused(driver: Driver, layer: str) -> None:
    """
    docker must have sent it all to see the answer, and not a broken pipe.
    """
    with pytest.raises(Refused, match="layer"):
        driver.apply(layer, "", (bytes(1 << 20) for _ in range(20)))


def test_calls_that_wait_for_docker_hold_up_nobody(driver: Driver, layers: Layers) -> None:
    """
    A hundred diffs that docker reads only as fast as it applies what it has read.
    """
    full = layers()
    with driver.mounted(full) as tree:
        (tree / "large").write_bytes(bytes(4 << 20))
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(contextlib.closing(driver.stream(full))) for _ in range(100)]
        begun = [next(stream) for stream in streams]
        copy = layers()
        assert driver.apply(copy, "", itertools.chain([begun[0]], streams[0])) == 4 << 20


def test_zeros_after_the_end_are_read(driver: Driver, layers: Layers) -> None:
    """
    docker hashes what is read; three MiB of padding are part of the layer's digest.
    """
    sent: list[int] = []

    def body() -> Iterator[bytes]:
        for piece in (tar("f"), *(bytes(1 << 20) for _ in range(3))):
            yield piece
            sent.append(len(piece))

    assert driver.apply(layers(), "", body()) == 10
    assert sum(sent) == len(tar("f")) + (3 << 20)


@pytest.mark.parametrize("direction", ["in", "out"])
def test_memory_does_not_grow_with_the_layer(
    driver: Driver, layers: Layers, node: Node, direction: str
) -> None:
    """
    A layer of 512 MiB, most of it one file, in either direction.
    """
    api = node.pid("api")
    peaks = [Path(f"/proc/{pid}/status") for pid in (api, *children(api or 0)) if pid]
    for status in peaks:
        Path(status.parent / "clear_refs").write_text("5")  # forget the peak (proc(5))
    before = sum(map(peak_mib, peaks))
    layer = layers()
    if direction == "in":
        member = tarfile.TarInfo("large")
        member.size = 512 << 20
        header = member.tobuf()
        body = (header, *(bytes(1 << 20) for _ in range(512)), bytes(1024))
        assert driver.apply(layer, "", iter(body)) == 512 << 20
    else:
        with driver.mounted(layer) as tree:
            (tree / "large").write_bytes(b"")
            os.truncate(tree / "large", 512 << 20)
        assert sum(map(len, driver.stream(layer))) == (512 << 20) + 512 + 1024
    assert sum(map(peak_mib, peaks)) - before < 64


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def peak_mib(status: Path) -> int:
    for line in status.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) >> 10
    raise AssertionError("no VmHWM")
