"""
The tests of `tests/vm/guest`, each in the machines that they are about.

`make test-nfs` runs them; GEAR_VM_ACCEL=tcg has them emulated even where
/dev/kvm is.
"""

from __future__ import annotations

import pytest

from tests.vm import debian, machine

pytestmark = pytest.mark.vm

_PYTEST = "python3 -m pytest -q -p no:cacheprovider -s --color=no --timeout 600"


def passes(kernel: str, words: str, *, timeout_s: float) -> None:
    run = machine.run(debian.kernel(kernel), f"{_PYTEST} {words}", timeout_s=timeout_s)
    assert run.status == 0, "\n".join(run.lines[-80:])


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_a_store_on_nfs(kernel: str) -> None:
    """Push, pull through the store, a server that stalls, and one that comes back."""
    passes(kernel, "tests/vm/guest/test_nfs.py", timeout_s=1800)


@pytest.mark.parametrize("kernel", list(debian.SUITES))
def test_the_ways_of_mounting(kernel: str) -> None:
    """What the kernel can do is found, and every way that it can shows the same tree."""
    passes(kernel, "tests/vm/guest/test_ways.py", timeout_s=1800)
