# `make demo` and `make test` work from a bare clone: they need Python 3.10 or newer with pip.
# On Linux, PyPI's torch brings its GPU libraries along, some gigabytes. PyTorch has an index with
# smaller CPU builds of the same version; pip takes it from PIP_EXTRA_INDEX_URL.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet -c constraints.txt

.PHONY: demo test lint format docs check-docs conformance benchmark drift peers

demo: .venv/.installed-test
	$(BIN)/lensbridge demo

test: .venv/.installed-test
	$(BIN)/python -m pytest

lint: .venv/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: .venv/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: .venv/.installed-test
	$(BIN)/python docs/generate

check-docs: .venv/.installed-test
	$(BIN)/python docs/generate --check
	$(BIN)/python docs/coverage.py --check

conformance: .venv/.installed-test
	$(BIN)/python docs/coverage.py --run
	$(BIN)/python -m pytest -m matrix

# By default the oldest transformers that is allowed, with what it needs; all else as it is pinned.
DRIFT ?= transformers==$(shell sed -n 's/.*"transformers>=\([0-9.]*\),.*/\1/p' pyproject.toml)

drift:
	$(PYTHON) -m venv --clear build/drift
	grep -vE '^(transformers|huggingface_hub|tokenizers)==' constraints.txt > build/drift/pins.txt
	build/drift/bin/python -m pip install --quiet -c build/drift/pins.txt \
		'$(DRIFT)' pytest hypothesis -e .
	build/drift/bin/python -m pytest tests/test_core_set.py

# Beside TransformerLens, SAELens, nnsight and pyvene, in an environment of their own.
PEERS := build/peers/bin/python

peers: build/peers/.installed
	$(PEERS) -m pytest -m peers tests/peers

build/peers/.installed: pyproject.toml constraints.txt constraints-peers.txt
	$(PYTHON) -m venv --clear build/peers
	$(PEERS) -m pip install --quiet -c constraints.txt -c constraints-peers.txt \
		-e '.[test]' transformer-lens sae-lens nnsight pyvene
	@touch $@

benchmark: .venv/.installed-test
	$(BIN)/python -m benchmarks

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[$*]'
	@touch $@
