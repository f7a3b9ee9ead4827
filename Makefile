# A newcomer needs `make quickstart` and `make test`. Both install what is missing, and are quick the second time.
# PYTHON chooses the interpreter (3.11 or newer), WORKDIR the folder for the results of the quickstart, JOBS the number
# of test processes.
PYTHON ?= python3
WORKDIR ?= runs/quickstart
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
START := $(shell date +%s)

.DEFAULT_GOAL := help
.PHONY: help quickstart install test lint types suite test-slow coverage docs wheel clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

quickstart: $(VENV)/.installed  ## install, then search a task that no single attention solves (three minutes)
	$(BIN)/dartformer run --config=search_spaces/recall_mixes.py --workdir=$(WORKDIR)

install: $(VENV)/.installed  ## create .venv and install dartformer in it

test: lint types suite  ## lint, check types and run the tests, and print the time
	@echo "make test took $$(( $$(date +%s) - $(START) )) seconds"

lint: $(VENV)/.tested  ## run ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.tested  ## run mypy
	$(BIN)/mypy

suite: $(VENV)/.tested  ## run the tests that take seconds, and list the slowest and why any was skipped
	$(BIN)/python -m pytest -n $(JOBS) -rs --durations=5

test-slow: $(VENV)/.engines  ## run the tests that take ten seconds or more
	$(BIN)/python -m pytest -m slow

coverage: $(VENV)/.covered  ## run the tests with coverage, into build/coverage/
	$(BIN)/python -m pytest -n $(JOBS) --cov --cov-report=term --cov-report=html:build/coverage

docs: $(VENV)/.tested  ## build the documentation into build/site/
	$(BIN)/mkdocs build --strict

wheel: $(VENV)/.tested  ## build the wheel into dist/
	$(BIN)/python -m build --wheel

clean:  ## remove .venv and all build results
	rm -rf $(VENV) build dist *.egg-info .coverage

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else \
	  "dartformer needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

$(VENV)/.engines: $(VENV)/.tested
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,ray,slurm]'
	@touch $@

$(VENV)/.covered: $(VENV)/.tested
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,coverage]'
	@touch $@
