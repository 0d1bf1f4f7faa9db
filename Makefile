# `make` alone lists what there is. Everything runs in .venv, which is made when it is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup train test test-all test-gpu lint format bench

help: ## List what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(VENV)/.done ## Install everything into .venv

$(VENV)/.done: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed, found $$($(PYTHON) --version 2>&1): run make PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

train: setup ## Train a small model on Python's own sources, to the end, without any download
	$(BIN)/python -m src.train experiment=quickstart $(ARGS)

test: setup ## The CPU suite (under 8 minutes)
	$(BIN)/python -m pytest -n 2 --dist loadscope -m "not slow and not gpu" $(ARGS)

test-all: setup ## The CPU suite and the long tests (under 40 minutes)
	$(BIN)/python -m pytest -n 2 --dist loadscope -m "not gpu" $(ARGS)

test-gpu: setup ## What needs a CUDA GPU
	$(BIN)/python -m pytest -m gpu tests/gpu $(ARGS)

lint: setup ## Lint, format check, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup ## Attention against other implementations, on the GPU (on the CPU: scripts.bench_factorized)
	$(BIN)/python -m scripts.bench_attention $(ARGS)
