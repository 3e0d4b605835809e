"""
Fuzzing what Gear parses of what a registry sends: manifest, EROFS index, layer tar.

`targets` says what must hold for any bytes, `repair` makes mutated bytes pass
the checksums that would hide the rest from a fuzzer, `test_fuzz` is the short
deterministic version, `run` the long one (`make fuzz`).
"""
