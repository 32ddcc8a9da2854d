# Needs python3 (3.11 or newer), make and git. Packages come from wherever pip on this machine is configured to look.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test lint bench clean

help:
	@echo "make setup   create $(VENV) and install tokenmill with everything the tests need"
	@echo "make demo    take a model through its life; prints a table and the path of a report"
	@echo "make test    linters, types, layers, and every test"
	@echo "make lint    linters, types, layers"
	@echo "make bench   measure start-up, first token and decoding here, beside transformers"
	@echo "make clean   remove $(VENV) and caches; models and runs stay"

setup: $(STAMP)

# The stamp is newer than pyproject.toml exactly when its dependencies are installed.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tokenmill needs Python 3.11 or newer; PYTHON=... names another one")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/python examples/demo.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

test: lint
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

bench: setup
	$(BIN)/python benchmarks/generate.py

clean:
	rm -rf $(VENV) .ruff_cache .mypy_cache .pytest_cache .import_linter_cache
