# As root on a fresh Debian 12: `make demo` and `make test` install what they need.
SHELL := /bin/bash
VENV := build/venv
PY := $(VENV)/bin/python

.PHONY: demo test test-engine test-full test-faults test-nfs torture check fuzz plugin bench bench-full bench-fleet clean

demo: build/.ready                ## the main job, nothing to configure
	$(PY) -m bench.demo

test: check test-faults test-engine ## everything

check: build/.ready               ## two minutes: lint, types, imports, unit and contract tests
	$(VENV)/bin/ruff check -q .
	$(VENV)/bin/ruff format -q --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache
	$(PY) -m pytest -n 4

test-faults: build/.ready         ## whole nodes, no engine: asked as docker does, alone and as a cluster, and while parts fail
	$(PY) -m pytest tests/conformance tests/faults tests/cluster --timeout 300

test-engine: build/.ready         ## real dockerd, real plugin, real registry
	$(PY) -m pytest tests/engine --timeout 900 -m "not full" --durations 15

test-full: build/.ready           ## the same with every image in every way of mounting
	$(PY) -m pytest tests/engine --timeout 900

test-nfs: build/.vm-deps          ## real NFS, and other kernels, in small virtual machines; see docs/nfs.md
	$(PY) -m pytest tests/vm/test_machines.py --timeout 2400 -s $(ARGS)

torture: build/.ready             ## everything killed at random, half an hour; TORTURE_SEED=N repeats one
	$(PY) -m pytest tests/engine/torture -k long --timeout 7200 -s

FUZZ_SECONDS ?= 600
FUZZ_TARGETS ?= manifest erofs layer unpack kernel
fuzz: build/.ready                ## FUZZ_SECONDS for each parser; atheris guides it where it installs
	$(VENV)/bin/pip install -q -e '.[fuzz]' || echo "no atheris here: unguided"
	set -e; for target in $(FUZZ_TARGETS); do \
	    nice -n 19 $(PY) -m tests.fuzz.run $$target --seconds $(FUZZ_SECONDS); \
	done

plugin: build/.ready              ## plugin/rootfs, ready for `docker plugin create gear/graphdriver plugin`
	$(PY) -m tests.engine.plugin

bench: build/.ready               ## overlay2 and Gear side by side, three quarters of an hour; ARGS="--quick" and more
	$(PY) -m bench $(ARGS)

bench-full: build/.ready          ## the same with every image and more repetitions: hours
	$(PY) -m bench --full $(ARGS)

bench-fleet: build/.ready         ## three minutes: a node's port on loopback; 1,000 and 10,000 nodes, simulated
	$(PY) -m bench.port
	$(PY) -m bench.fleet

clean:
	test ! -x $(PY) || $(PY) -m tests.engine.engine build/engines
	rm -rf build plugin/rootfs/[!.]*

build/.deps: .ci/install-deps
	.ci/install-deps
	mkdir -p build && touch $@

build/.vm-deps: .ci/install-vm-deps build/.ready
	.ci/install-vm-deps
	touch $@

build/.ready: build/.deps pyproject.toml
	test -x $(PY) || /usr/bin/python3 -m venv $(VENV)
	$(VENV)/bin/pip install -q -e '.[dev]'
	touch $@
