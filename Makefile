# Each command sets up .venv first if it is not there or is out of date.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.stamp

.PHONY: setup demo test check bench test-frameworks clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Spanloop needs Python 3.11 or newer, {sys.executable} is {v.major}.{v.minor}; try make PYTHON=python3.11")'
	@echo "setting up $(VENV) (about 2 minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@# torch by itself and first: whatever asks for it later finds this build and takes no other.
	@# No byte code ahead of time (a minute): most of 18,000 files are never imported, and Python compiles the others by itself.
	@$(BIN)/python -m pip install --quiet --progress-bar off --no-compile torch==2.13.0
	@$(BIN)/python -m pip install --quiet --progress-bar off --no-compile --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	@$(BIN)/python examples/calculator/demo.py

test: check
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: setup
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

bench: setup
	@$(BIN)/python -m bench

# Scenarios of agent frameworks, each in an environment of its own; no part of `make test` (needs npm; see docs/frameworks.md).
OTHERS     := .venv-frameworks
FRAMEWORKS := $(sort $(notdir $(patsubst %/,%,$(dir $(wildcard tests/frameworks/*/agent.*)))))

test-frameworks: setup $(FRAMEWORKS:%=$(OTHERS)/%/.stamp)
	@$(BIN)/python -m pytest -v tests/frameworks

$(OTHERS)/%/.stamp: tests/frameworks/%/requirements.txt pyproject.toml
	@echo "setting up $(@D)"
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --progress-bar off --no-compile --requirement $< --editable .
	@touch $@

$(OTHERS)/%/.stamp: tests/frameworks/%/package-lock.json
	@echo "setting up $(@D)"
	@mkdir -p $(@D)
	@cp tests/frameworks/$*/package.json tests/frameworks/$*/package-lock.json $(@D)
	@cd $(@D) && npm ci --silent --no-audit --no-fund
	@touch $@

clean:
	rm -rf $(VENV) $(OTHERS) runs dist build .mypy_cache .ruff_cache .pytest_cache
