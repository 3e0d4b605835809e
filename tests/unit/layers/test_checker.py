"""The structure check runs in a process that may die, and dying is a refusal."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gear_plugin.errors import GearError, IndexDamaged, TimedOut, Unavailable
from gear_plugin.layers import LayerStore, NodeImages
from gear_plugin.layers.apply import Unpacker
from gear_plugin.layers.checker import Checker
from tests.unit.image.indexes import index
from tests.unit.image.trees import file, tree_of

from .conftest import NoViews
from .layer_damage import whole
from .tars import reading

pytestmark = pytest.mark.root

MIB = 1 << 20
Apply = Callable[[Checker, bytes], None]


def shell(script: str) -> Checker:
    """A checker that does what the script says instead of checking."""
    return Checker(command=("sh", "-c", script, "sh"), wall_s=0.5 if "sleep" in script else 60)


def real(change: str, memory_bytes: int = 2048 * MIB) -> Checker:
    """The real checker with *change* made to it first; 1 s of processor."""
    script = f"import sys\nfrom gear_plugin.confined import check\n{change}\n"
    command = (sys.executable, "-c", script + "sys.exit(check.main(sys.argv[1:]))")
    return Checker(command=command, memory_bytes=memory_bytes, cpu_s=1)


@pytest.fixture
def apply(root: Path) -> Apply:
    """Apply a layer with some checker, and look that a failure leaves nothing."""

    def run(checker: Checker, layer: bytes) -> None:
        store = LayerStore(root, NodeImages(root, checker=checker), NoViews(), lambda _: None)
        store.create("layer", "", writable=False)
        try:
            store.apply("layer", reading(layer))
        finally:
            assert sorted(os.listdir(root / "containers/layer")) == [
                "layer.json", "merged", "upper", "work"
            ]  # fmt: skip
            assert os.listdir(root / "containers/layer/upper") == []
            assert os.listdir(root / "images") == []

    return run


_ENDLESS = "check.check_index = lambda *_: [None for _ in iter(int, 1) if _]"
_DEATHS: dict[str, tuple[Checker, type[GearError], str]] = {
    "crash": (shell("kill -SEGV $$"), IndexDamaged, "was killed by SIGSEGV"),
    "killed after half an answer": (
        shell("printf '{\"ok\": tr'; kill -KILL $$"), IndexDamaged, "was killed by SIGKILL"
    ),
    "says nothing": (shell("exit 0"), IndexDamaged, "ended with status 0"),
    "says something else": (shell("echo hello; exit 3"), IndexDamaged, "ended with status 3"),
    "bug": (real("check.check_index = None"), IndexDamaged, "ended with status 1"),
    "hangs": (shell("exec sleep 60"), TimedOut, "took more than 0.5 s"),
    "never ends": (real(_ENDLESS), IndexDamaged, "busy for more than 1 s"),
    "wants all memory": (
        real("check.check_index = lambda *_: bytearray(1 << 44)"), IndexDamaged, "more memory"
    ),
}  # fmt: skip


@pytest.mark.parametrize("death", _DEATHS)
def test_a_checker_that_dies_refuses_the_index(apply: Apply, death: str) -> None:
    """
    However it ends: one line that says how, and neither layer nor image is left.
    """
    checker, error, reason = _DEATHS[death]
    with pytest.raises(error, match=reason) as caught:
        apply(checker, whole())
    assert "\n" not in str(caught.value)


def test_an_index_too_large_for_the_memory_is_refused(apply: Apply) -> None:
    """
    A sound one, too: the limit is the kernel's, not a promise of the checker.
    """
    tree = tree_of({b"%06d" % n: file(b"%d" % n) for n in range(30_000)})
    with pytest.raises(IndexDamaged, match="more memory"):
        apply(Checker(memory_bytes=40 * MIB), whole(*index(tree, chunks={}, profile=())))


def test_a_bomb_of_a_manifest_stays_within_the_memory(apply: Apply) -> None:
    """
    8 MiB of JSON are hundreds of MiB of objects.
    """
    bomb = index(config={"a": [[[]] * 700_000] * 2})
    with pytest.raises(IndexDamaged, match="more memory"):
        apply(Checker(memory_bytes=128 * MIB), whole(*bomb))


def test_an_unpacker_that_is_killed_is_not_the_layers_fault(tmp_path: Path) -> None:
    """
    The out-of-memory killer's choice can be tried again; the stream is read to its end.
    """
    data = whole() + bytes(4 * MIB)
    left = [data]

    def read(size: int) -> bytes:
        piece, left[0] = left[0][:size], left[0][size:]
        if len(left[0]) < 2 * MIB:
            for child in children("untar"):
                os.kill(child, 9)
        return piece

    (tmp_path / "layer").mkdir()
    with pytest.raises(Unavailable, match="was killed by SIGKILL; try again"):
        Unpacker().unpack(tmp_path / "layer", read, lowest=True)
    assert left == [b""]


def test_helpers_that_wait_are_used_and_replaced(tmp_path: Path) -> None:
    """
    Started ahead, so that a layer does not wait for Python; each does one layer.
    """
    unpacker = Unpacker(ahead=True)
    used = set()
    for number in range(3):
        while not (waiting := children("untar")):
            pass  # it has no command line for a moment after its start
        assert len(waiting) == 1
        used |= waiting
        layer = tmp_path / str(number)
        layer.mkdir()
        assert unpacker.unpack(layer, reading(whole()), lowest=True) > 0
        assert (layer / ".gear/index.erofs").exists()
    assert len(used) == 3
    unpacker.close()
    assert children("untar") == set()


def test_a_helper_that_died_waiting_is_replaced(tmp_path: Path) -> None:
    """
    The out-of-memory killer may take one that does nothing yet.
    """
    unpacker = Unpacker(ahead=True)
    while not (waiting := children("untar")):
        pass
    for child in waiting:
        os.kill(child, 9)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert unpacker.unpack(tmp_path, reading(whole()), lowest=True) > 0
    unpacker.close()


def test_a_helper_that_is_not_needed_ends_with_its_caller() -> None:
    """
    Its input is closed then; it says nothing.
    """
    for module in ("untar", "check"):
        command = [sys.executable, "-m", f"gear_plugin.confined.{module}"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def children(word: str) -> set[int]:
    """The living children of this process with *word* in their command line."""
    found = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {int(one) for one in found if word.encode() in Path(f"/proc/{one}/cmdline").read_bytes()}
