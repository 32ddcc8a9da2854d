# Needs python3 (3.11 or newer), make and git. Packages come from wherever pip on this machine is configured to look.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUNS := $(VENV)/.runs

.PHONY: help setup demo test lint bench docs sanitize kernels-arm clean

help:
	@echo "make setup   create $(VENV) and install tokenmill with everything the tests need"
	@echo "make demo    take a model through its life; prints a table and the path of a report"
	@echo "make test    linters, types, layers, and every test"
	@echo "make lint    linters, types, layers"
	@echo "make bench   measure start-up, first token and decoding here, beside transformers"
	@echo "make docs    the site of docs/ in build/site"
	@echo "make sanitize     the native kernels' tests under AddressSanitizer and UBSan, in a build of their own (g++)"
	@echo "make kernels-arm  the NEON kernels, cross-compiled and emulated (aarch64-linux-gnu-g++, qemu-aarch64)"
	@echo "make clean   remove $(VENV) and caches; models and runs stay"

setup: $(STAMP)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tokenmill needs Python 3.11 or newer; PYTHON=... names another one")'
	$(PYTHON) -m venv $(VENV)

# The stamps are newer than pyproject.toml exactly when its dependencies are installed: those of the demo, and all.
$(RUNS): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[data,eval]'
	@touch $@

$(STAMP): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(RUNS) $@

demo: $(RUNS)
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

docs: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

KERNEL_TESTS := $(addprefix tests/kernels/test_native,.py _attention.py _program.py _train.py)

# Python itself leaks by design, so leaks are not looked for. AddressSanitizer finds the functions that throw only where
# the C++ library is there before Python. -s: what the sanitizers say goes to stderr.
sanitize: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check cmake nanobind
	$(BIN)/cmake -S native -B build/sanitize -DPython_EXECUTABLE=$(abspath $(BIN)/python) -DTOKENMILL_SANITIZE=ON
	$(BIN)/cmake --build build/sanitize --parallel
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so.6)" ASAN_OPTIONS=detect_leaks=0 \
	TOKENMILL_TEST_NATIVE=$$(ls $(CURDIR)/build/sanitize/_native*.so) $(BIN)/python -m pytest -p no:xdist -x -q -s $(KERNEL_TESTS)

ARM := build/arm
ARM_CXX := aarch64-linux-gnu-g++ -std=c++20 -O1 -ffp-contract=off -Wno-psabi -Inative/src
$(ARM)/%.o: native/src/%.cpp native/src/*.h native/src/*.inl
	mkdir -p $(ARM)
	$(ARM_CXX) -march=armv8.2-a+dotprod -c $< -o $@

kernels-arm: $(patsubst %,$(ARM)/%.o,dispatch isa_avx2 isa_avx512 isa_amx isa_neon)
	$(ARM_CXX) -static native/test/kernels.cpp $^ -o $(ARM)/kernels
	qemu-aarch64 $(ARM)/kernels neon

clean:
	rm -rf $(VENV) .ruff_cache .mypy_cache .pytest_cache .import_linter_cache
