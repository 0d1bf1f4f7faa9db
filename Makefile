# `make` alone lists what there is. Everything runs in .venv, which is made when it is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TOOLS := .tools

define venv # one that another Python made is made anew: the two would be mixed
@[ "$$($(1)/bin/python -VV 2>&1)" = "$$($(PYTHON) -VV 2>&1)" ] || rm -rf $(1)
$(PYTHON) -m venv $(1)
endef

.DEFAULT_GOAL := help
.PHONY: help setup train test test-all test-gpu lint format bench lock audit licences docs

help: ## List what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(VENV)/.done ## Install everything into .venv

# First the locked versions, whose hashes pip checks; then what the lock leaves open: torch, triton, this project.
$(VENV)/.done: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed, found $$($(PYTHON) --version 2>&1): run make PYTHON=python3.11"; exit 2; }
	$(call venv,$(VENV))
	@$(BIN)/python -m pip install --quiet --no-compile --require-hashes --no-deps --requirement requirements.lock || \
		echo "requirements.lock does not fit this machine: versions are chosen by the ranges of pyproject.toml"
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev]'
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # on all cores, where pip takes one
	@touch $@

train: setup ## Train a small model on Python's own sources, to the end, without any download
	$(BIN)/python -m src.train experiment=quickstart $(ARGS)

test test-all: export PYTHONDONTWRITEBYTECODE := # or some hundred processes compile src/ and tests/, each for itself

test: setup ## The CPU suite (about 5 minutes)
	$(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder -m "not slow and not gpu" $(ARGS)

test-all: setup ## The CPU suite and the long tests (about 20 minutes)
	$(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder -m "not gpu" $(ARGS)

test-gpu: setup ## What needs a CUDA GPU
	$(BIN)/python -m pytest -m gpu tests/gpu $(ARGS)

lint: setup ## Lint, format check, types, which package may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: setup ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup ## Every measurement of docs/benchmarks.md that one GPU makes (on a CPU: scripts.bench.factorized)
	$(BIN)/python -m scripts.bench.all $(ARGS)

$(TOOLS)/.done:
	$(call venv,$(TOOLS))
	$(TOOLS)/bin/python -m pip install --quiet 'pip-tools>=7.5,<8' 'pip-audit>=2.9,<3' 'pip-licenses>=5.5,<6' \
		'mkdocs-material>=9.6,<10' 'mkdocstrings-python>=1.16,<3'
	@touch $@

lock: $(TOOLS)/.done ## Write requirements.lock anew from pyproject.toml (ARGS=--upgrade for newer versions)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "error: the lock is made with Python 3.11, found $$($(PYTHON) --version 2>&1): run make lock PYTHON=python3.11"; exit 2; }
	CUSTOM_COMPILE_COMMAND="make lock" $(TOOLS)/bin/pip-compile --quiet --extra dev --generate-hashes --strip-extras \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
		--unsafe-package torch --unsafe-package triton --unsafe-package sparse-transformer --output-file requirements.lock $(ARGS) pyproject.toml

docs: $(TOOLS)/.done ## Build the pages of docs/ as a site in site/; broken links are errors
	NO_MKDOCS_2_WARNING=1 $(TOOLS)/bin/mkdocs build --quiet

audit: setup $(TOOLS)/.done ## Look the installed versions up among known vulnerabilities
	$(BIN)/python -m scripts.audit $(TOOLS)/bin/pip-audit

licences: setup $(TOOLS)/.done ## Write docs/licences.md; fails on a licence that nobody has read yet
	$(BIN)/python -m scripts.licences $(TOOLS)/bin/pip-licenses
