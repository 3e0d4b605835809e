"""
The long fuzz: `python -m tests.fuzz.run TARGET [--seconds N] [--folder DIR]`.

Guided by coverage (atheris, libFuzzer) where it is installed; without it, the
same targets on random mutations of the seeds.  The last line says how many
inputs there were.  A finding ends it with a traceback and a status that is
not 0, and leaves the input in DIR; put that into tests/corpus/fuzz/TARGET/
with the fix.

`unpack` and `kernel`, which need root, run cases made from random numbers
(`tests.fuzz.unpack`, `tests.fuzz.kernel`); a finding names its number.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

_MAX_BYTES = 64 * 1024
_INPUT_LIMIT_S = 20
_MEMORY_LIMIT_MB = 2048
_UNITS = {"manifest": 32, "erofs": 32, "layer": 512}
"""What each format is made of, bytes: digests, slots of inodes, tar blocks."""


class _Counted:
    """A target that counts its inputs."""

    def __init__(self, name: str) -> None:
        from tests.fuzz.targets import TARGETS

        self._name, self._run = name, TARGETS[name]
        self.inputs = self.accepted = 0
        self._began = time.monotonic()
        self._told = self._began

    def __call__(self, data: bytes) -> None:
        self.inputs += 1
        self.accepted += self._run(data)
        if time.monotonic() - self._told > 30:
            self.tell()

    def tell(self) -> None:
        """Say how far it has come."""
        self._told = time.monotonic()
        seconds = self._told - self._began
        print(
            f"{self._name}: {self.inputs} inputs in {seconds:.0f} s"
            f" ({self.inputs / seconds:.0f}/s), {self.accepted} accepted",
            flush=True,
        )


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(prog="tests.fuzz.run")
    parser.add_argument("target", choices=["manifest", "erofs", "layer", "unpack", "kernel"])
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"))
    options = parser.parse_args()
    folder = options.folder / options.target
    (folder / "inputs").mkdir(parents=True, exist_ok=True)
    if options.target in ("unpack", "kernel"):
        _run_cases(options.target, options.seconds, folder)
        return
    try:
        import atheris
    except ImportError:
        print("atheris is not installed: no coverage guidance", flush=True)
        _mutate(options.target, options.seconds, folder)
        return
    # The checksum's inner loop would only slow the fuzzer down.
    exclude = ["gear_plugin.image.erofs_format"]
    with atheris.instrument_imports(include=["gear_plugin.image"], exclude=exclude):
        counted = _Counted(options.target)
    from tests.fuzz.seeds import seeds

    for number, seed in enumerate(seeds(options.target)):
        (folder / "inputs" / f"seed-{number:03}").write_bytes(seed)

    def mutate(data: bytes, limit: int) -> bytes:
        # Asked for late: atheris exchanges its native half in Fuzz().
        return bytes(atheris.Mutate(data, limit))

    atheris.Setup(
        [
            sys.argv[0],
            f"-max_total_time={options.seconds}",
            f"-max_len={_MAX_BYTES}",
            f"-timeout={_INPUT_LIMIT_S}",
            f"-rss_limit_mb={_MEMORY_LIMIT_MB}",
            f"-artifact_prefix={folder}/",
            "-print_final_stats=1",
            "-verbosity=0",
            str(folder / "inputs"),
        ],
        counted,
        custom_mutator=_mutator(mutate, _UNITS[options.target]),
    )
    atheris.Fuzz()


def _mutator(
    mutate: Callable[[bytes, int], bytes], unit: int
) -> Callable[[bytes, int, int], bytes]:
    """libFuzzer's own mutations, and every third time one that moves whole units about."""

    def run(data: bytes, max_bytes: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.randrange(3) or len(data) < 2 * unit:
            return mutate(data, max_bytes)
        units = [data[at : at + unit] for at in range(0, len(data), unit)]
        source, target = chance.randrange(len(units)), chance.randrange(len(units))
        match chance.randrange(4):
            case 0:
                units.insert(target, units[source])
            case 1:
                del units[source]
            case 2:
                units[source], units[target] = units[target], units[source]
            case 3:
                units[source] = mutated(units[source], chance)[:unit].ljust(unit, b"\0")
        return b"".join(units)[:max_bytes]

    return run


def _mutate(target: str, seconds: int, folder: Path) -> None:
    from tests.fuzz.seeds import seeds

    counted = _Counted(target)
    chance = random.Random(time.time_ns())
    pool = [seed for seed in seeds(target) if len(seed) <= _MAX_BYTES]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutated(chance.choice(pool), chance)
        began = time.monotonic()
        try:
            counted(data)
            assert time.monotonic() - began < _INPUT_LIMIT_S, "an input that takes too long"
        except BaseException:
            (folder / "finding").write_bytes(data)
            print(f"the input is {folder / 'finding'}", flush=True)
            raise
    counted.tell()


def _run_cases(target: str, seconds: int, folder: Path) -> None:
    from tests.fuzz import kernel, unpack

    def try_image(number: int, base: Path) -> bool:
        return kernel.try_image(number, base, fsck=number % 16 == 0)

    cases = [try_image] if target == "kernel" else [unpack.try_hostile, unpack.try_lawful]
    first = number = time.time_ns()
    accepted = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        case = cases[number % len(cases)]
        with tempfile.TemporaryDirectory(dir=folder) as base:
            try:
                accepted += case(number, Path(base))
            except BaseException:
                print(f"the case is {case.__name__}({number})", flush=True)
                raise
        number += 1
    print(f"{target}: {number - first} inputs in {seconds} s, {accepted} accepted", flush=True)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """*data* with one to eight random changes."""
    image = bytearray(data or b"\0")
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(image))
        match chance.randrange(6):
            case 0:
                image[at] ^= 1 << chance.randrange(8)
            case 1:
                image[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
            case 2:
                size = chance.choice((2, 4, 8))
                number = chance.choice(
                    (0, 1, 2**15, 2**31, 2**63, 2**64 - 1, chance.getrandbits(64))
                )
                image[at : at + size] = (number & (1 << size * 8) - 1).to_bytes(size, "little")
            case 3:
                size = chance.randrange(1, 64)
                image[at : at + size] = image[
                    (other := chance.randrange(len(image))) : other + size
                ]
            case 4:
                del image[at : at + chance.randrange(1, 600)]
                image = image or bytearray(1)
            case 5:
                image[at:at] = image[at : at + chance.randrange(1, 600)]
    return bytes(image)


if __name__ == "__main__":
    main()
