# Everything a newcomer needs is `make quickstart` and `make test`; both install what is missing and are quick when
# nothing is. PYTHON chooses the interpreter (3.11 or newer), WORKDIR the folder of the quickstart's results.
PYTHON ?= python3
WORKDIR ?= runs/quickstart
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help quickstart install test lint types suite test-slow docs wheel clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

quickstart: $(VENV)/.installed  ## install, then search, derive, retrain, evaluate and export on ListOps (two minutes)
	$(BIN)/dartformer run --config=search_spaces/listops_tiny.py --workdir=$(WORKDIR)

install: $(VENV)/.installed  ## make .venv with dartformer in it

test: lint types suite  ## install the test extra, then lint, type check, test

lint: $(VENV)/.tested  ## ruff
	$(BIN)/ruff check .

types: $(VENV)/.tested  ## mypy
	$(BIN)/mypy

suite: $(VENV)/.tested  ## the tests that take seconds
	$(BIN)/python -m pytest -n $(JOBS)

test-slow: $(VENV)/.tested  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

docs: $(VENV)/.tested  ## build the documentation into build/site/
	$(BIN)/mkdocs build --strict

wheel: $(VENV)/.tested  ## build the wheel into dist/
	$(BIN)/python -m build --wheel

clean:  ## remove .venv and what was built
	rm -rf $(VENV) build dist *.egg-info

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
