# One environment in .venv, made by the first target that needs it; a stamp file remembers each step,
# so a repeated call does only what has changed. Choose another interpreter with: make PYTHON=python3.12 ...

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# What the caller wants pip to do besides (for example PIP_FLAGS=--no-index); nothing by default.
PIP_FLAGS ?=
PIP    := $(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal
INPUTS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install demo test test-all check lint format types imports sizes bench lock clean

help: ## Show the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.core ## Install the core package, and the mech command, into .venv.
	@echo "Installed. Run $(BIN)/mech --help, or activate it with: . $(BIN)/activate"

demo: $(VENV)/.core ## The main job: how a bundled model recalls facts.
	@$(BIN)/mech demo

test: check ## Everything that CI runs: lint, types, import rules, module sizes, tests.
	@$(PYTEST)

test-all: check $(VENV)/.interp ## The full matrix, every backend included.
	@$(PYTEST) -m "full or not full"

bench: $(VENV)/.bench ## Time mech against its peers; one JSON line per benchmark.
	@set -e; for script in benchmarks/*.py; do echo "$$script" >&2; $(BIN)/python $$script --json; done

check: lint types imports sizes

lint: $(VENV)/.dev ## Style, and no index addresses or machine paths in committed files.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "Not formatted; run: make format"; exit 1; }
	@$(BIN)/python tools/check_text.py

format: $(VENV)/.dev ## Let ruff put the code into its form.
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

types: $(VENV)/.dev
	@$(BIN)/mypy

imports: $(VENV)/.dev
	@$(BIN)/lint-imports --no-logo

sizes: $(VENV)/.dev
	@$(BIN)/python tools/check_sizes.py

lock: $(VENV)/.dev ## Resolve every extra again and write constraints.txt.
	@$(BIN)/python tools/lock.py

clean: ## Remove the environment, caches and build results.
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment. The package is installed editable: what you read in src is what runs, after a
# `git pull` too. The wheel that others install is built and tried by tests/packaging/test_wheel.py.

$(VENV)/.python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null || \
		{ echo "mech needs Python 3.11 or newer, and '$(PYTHON)' is not: try make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c "import venv, ensurepip" 2>/dev/null || \
		{ echo "This Python lacks venv or ensurepip: install your system's python3-venv package, or use another with make PYTHON=..."; exit 1; }
	@echo "Making $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.core: $(VENV)/.python $(INPUTS)
	@echo "Installing the core package (the first time this fetches torch; a minute or more) ..."
	@$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.python $(INPUTS)
	@echo "Installing the package and its development tools ..."
	@$(PIP) -e '.[dev]'
	@touch $(VENV)/.core $@

$(VENV)/.interp: $(VENV)/.dev
	@echo "Installing the other backends ..."
	@$(PIP) -e '.[interp,dev]'
	@touch $@

$(VENV)/.bench: $(VENV)/.core
	@echo "Installing what the benchmarks compare with ..."
	@$(PIP) -e '.[bench]'
	@touch $@
