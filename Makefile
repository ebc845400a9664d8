# The front door: `make help`. Every target sets up what it needs, once, in .venv.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Where it is set, each process compiles all of torch and vLLM anew: 9 s of the 17 that importing them
# takes, for each of an engine's three processes.
unexport PYTHONDONTWRITEBYTECODE

VENV ?= .venv
PY := $(VENV)/bin/python
# A machine lent for its GPU may have torch and triton but no .venv, nor the means to make one.
GPU_PY ?= $(if $(wildcard $(PY)),$(PY),python3)

# CPython 3.11-3.13; PYTHON=... overrides. Each is run, as pyenv's shims exist without a Python.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3 python; do \
  "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
    && { echo "$$python"; break; }; done)

# The locks are for Linux x86_64: cuda where nvidia-smi works, else cpu (LOCK=... overrides).
ifeq ($(shell uname -sm),Linux x86_64)
LOCK ?= $(shell nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
else
LOCK ?= none
endif
PORT ?= 8000
DEMO_FLAGS ?= $(if $(filter none,$(LOCK)),--runtime transformers)

LOCKED := $(VENV)/.locked-$(LOCK)
INSTALLED := $(VENV)/.installed

# One line per package from pip's log.
PROGRESS := awk '/^(Collecting|Processing) / { sub(/.*\//, "", $$2); printf "  %3d %s\n", ++n, $$2; fflush() } \
  /^Installing/ { print "  installing them"; fflush() }'

.PHONY: help setup demo demo-tiny serve-demo test test-extended test-all soak lint bench bench-engine kernels-report \
  gpu-check gpu-bench vllm-matrix tiny-model lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

setup: $(INSTALLED) ## Create .venv with the pinned packages and this repository (the other targets do it)

ifeq ($(LOCK),none)
$(LOCKED): pyproject.toml
	@test -n "$(PYTHON)" || { echo "saif-fast needs CPython 3.11-3.13: make PYTHON=..." >&2; exit 1; }
	@echo "[1/2] No lock for this system: saif-fast with its Transformers runtime, no vLLM (untested)"
	$(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install hatchling editables -e '.[identify,report,dev]'
	@touch $@
else
# The stamp is a copy of the lock, so a checkout that only touches the file installs nothing.
$(LOCKED): locks/$(LOCK).txt
	@test -n "$(PYTHON)" || { echo "saif-fast needs CPython 3.11-3.13: make PYTHON=..." >&2; exit 1; }
	@if cmp -s $< $@; then touch $@; exit; fi; \
	echo "[1/2] $$(grep -c == $<) packages of locks/$(LOCK).txt into $(VENV), with $$($(PYTHON) -V)"; \
	$(PYTHON) -m venv --clear $(VENV); \
	$(PY) -m pip install --no-deps --no-compile --disable-pip-version-check \
	  --log $(VENV)/pip.log -r $< 2>$(VENV)/pip.err | $(PROGRESS) || { \
	    grep -Ev '^WARNING|Ignored the following' $(VENV)/pip.err >&2 || true; \
	    echo "The install failed; $(VENV)/pip.log has the whole story." >&2; \
	    if grep -q 'torch==.*+cpu' $(VENV)/pip.err; then \
	      echo "torch's CPU build is not on the default package index: set PIP_EXTRA_INDEX_URL" \
	        "to PyTorch's CPU index (README, \"Install\") and run make again." >&2; fi; \
	    exit 1; }; \
	cp $< $@
endif

$(INSTALLED): $(LOCKED) pyproject.toml
	@echo "[2/2] saif-fast itself, editable"
	@$(PY) -m pip install --quiet --no-deps --no-build-isolation --disable-pip-version-check -e .
	@touch $@

NO_VLLM = $(if $(filter none,$(LOCK)),echo "No vLLM on this system: the demo runs on the Transformers runtime.")

demo: setup ## Make a real model follow in a real vLLM: search, three replies, a table (the README's first command)
	@$(NO_VLLM)
	$(PY) -m saif_fast.cli demo --output build/demo $(DEMO_FLAGS)

demo-tiny: setup ## SAIF and its controls on the embedded model, which needs no download: a table
	@$(NO_VLLM)
	$(PY) -m saif_fast.cli demo-tiny --output build/demo-tiny $(DEMO_FLAGS)

SERVED := build/serve-demo

$(SERVED)/french.safetensors: | setup
	@echo "Finding the latents of french in the embedded model"
	@$(PY) -m saif_fast.cli identify --model embedded --sae embedded --instruction french --auto \
	  --runtime transformers -o $@ >/dev/null

serve-demo: $(SERVED)/french.safetensors ## Serve the embedded model with a set on PORT (8000); shows how to ask it
	@printf '%s\n' '' 'When the server says "Application startup complete", in another terminal:' '' \
	  "curl http://127.0.0.1:$(PORT)/v1/chat/completions -H 'Content-Type: application/json' -d '{" \
	  '  "model": "embedded", "temperature": 0, "max_tokens": 32,' \
	  '  "messages": [{"role": "user", "content": "Tell me about my black cat in the garden."}],' \
	  "  \"vllm_xargs\": {\"saif\": \"french*1.2\"}}'" ''
	@VLLM_CPU_KVCACHE_SPACE=1 VLLM_LOGGING_LEVEL=WARNING $(PY) -m saif_fast.cli serve embedded \
	  --set-dir $(SERVED) --host 127.0.0.1 --port $(PORT) --enforce-eager --dtype float32

# One worker runs all tests of a file, which share engines by fixtures.
PYTEST = $(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 10
WORKERS ?= 2

test: setup ## Quick tests and a few real engines, in WORKERS (2) processes (the README's second command)
	$(PYTEST) -m "not extended and not slow"

test-extended: setup ## The other tests that CI runs: sweeps of the kernels, the other engines
	$(PYTEST) -m "extended and not slow"

test-all: setup ## All tests
	$(PYTEST)

soak: setup ## Thousands of requests while sets come and go, SOAK_MINUTES=10: no leak, right outputs
	HF_HUB_OFFLINE=1 VLLM_LOGGING_LEVEL=WARNING SAIF_TEST_SITE=core_state \
	  PYTHONPATH=tests/vllm/support/site:tests/vllm/support$${PYTHONPATH:+:$$PYTHONPATH} \
	  $(PY) tests/vllm/soak.py

lint: setup ## ruff, and mypy --strict on the packages
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: setup ## Benchmarks of the operators
	$(PY) -m pytest bench --ignore bench/bench_engine.py --benchmark-only

bench-engine: setup ## Benchmark: steered against plain generation in vLLM, about 10 minutes
	$(PY) -m pytest bench/bench_engine.py --benchmark-only --timeout 1800

kernels-report: setup ## Compile every kernel for four GPUs (none needed): registers, loads, bytes moved
	$(PY) bench/kernels_report.py

gpu-check: ## The kernels' tests on this machine's GPU; without .venv by python3; exit code 77: no GPU
	PYTHONPATH=kernels$${PYTHONPATH:+:$$PYTHONPATH} $(GPU_PY) bench/gpu/run.py check

gpu-bench: ## The kernels' speed on this machine's GPU, into SAIF_RESULTS (bench/results)/<gpu>; as above
	PYTHONPATH=kernels$${PYTHONPATH:+:$$PYTHONPATH} $(GPU_PY) bench/gpu/run.py bench

vllm-matrix: setup ## The seams' tests on other versions of vLLM (VERSIONS, an hour for all), a table
	$(PY) -m bench.vllm_matrix $(VERSIONS)

tiny-model: setup ## Rebuild the embedded model and its SAEs (frozen by hash: read CONTRIBUTING first)
	$(PY) -m tools.tiny_model.build

lock: setup ## Derive locks/*.txt anew from package metadata (CPython 3.11)
	$(PY) locks/update.py

clean: ## Remove .venv, build outputs and caches
	rm -rf $(VENV) build dist .benchmarks .mypy_cache .pytest_cache .ruff_cache .hypothesis
