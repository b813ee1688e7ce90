# Every target sets up what it needs: only Python 3.11 to 3.13, make and a network to PyPI are assumed.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
UV_VERSION := 0.13.9
BIN := .venv/bin
STAMP := .venv/.locked
COMPILE := --quiet --universal --generate-hashes --no-emit-index-url --no-header
# DEMO=smoke runs the same code in a tiny setting, as CI does.
DEMO ?= full

.PHONY: help setup demo test test-slow lint format bench docs serve reproduce lock image-lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed, this is {sys.version.split()[0]}: run make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@echo "installing the locked packages into .venv" >&2
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --compile-bytecode --requirements requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

setup: $(STAMP) ## make .venv with all extras, from the hash-pinned lock

demo: $(STAMP) ## the main job end to end: cohort, training, release, promotion, serving, report (resumable)
	$(BIN)/hepalign demo --out $(if $(filter smoke,$(DEMO)),demo-smoke,demo) --size $(DEMO)

test: $(STAMP) ## the tests (fast ones)
	$(BIN)/pytest -m "not slow and not alone" --numprocesses=logical --maxprocesses=4 --dist=loadfile --durations=15
	$(BIN)/pytest -m "not slow and alone" --durations=15

test-slow: $(STAMP) ## the long tests: soaks, kills under load, training checks
	$(BIN)/pytest -m slow --timeout=3600 --durations=0

lint: $(STAMP) ## ruff, mypy --strict, import rules, the lock's freshness
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## let ruff format and mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## the figures of docs/performance.md, measured on this machine
	$(BIN)/python benchmarks/run.py

docs: $(STAMP) ## check every command, link and table of the docs
	$(BIN)/pytest tests/docs

serve: $(STAMP) ## serve the current release on this machine; prints the address and a token
	$(BIN)/hepalign serve

reproduce: $(STAMP) ## make the starter release again: cohorts, three trainings, evaluation, gate (hours; resumable)
	$(BIN)/python jobs/reproduce.py

lock: $(STAMP) ## resolve pyproject.toml again into requirements.lock, and what the images hold of it
	$(BIN)/uv pip compile $(COMPILE) --all-extras --group dev --output-file requirements.lock pyproject.toml
	$(MAKE) image-lock

image-lock: $(STAMP) ## what the images install: requirements.lock without tools and peers (UV_TORCH_BACKEND=cpu: PyTorch without CUDA)
	$(BIN)/uv pip compile $(COMPILE) --extra features --constraints requirements.lock --no-annotate --output-file infra/docker/runtime.lock pyproject.toml

clean: ## remove what the targets made (not the demo)
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
