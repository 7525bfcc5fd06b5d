# Each target sets itself up: a virtual environment in .venv, and in it what the target needs. Nothing is redone that has
# not changed. PYTHON chooses the interpreter that the environment is made with.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test test-all lint types bench clean

demo: .venv/examples ## train the disk network, and draw what it learned to disk.png
	$(BIN)/python examples/disk.py --plot disk.png

test: lint types ## all checks: style, types, tests
	$(BIN)/pytest -n auto -m "not slow"

test-all: lint types ## the same with the slow sweeps
	$(BIN)/pytest -n auto

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/test
	$(BIN)/mypy

bench: .venv/bench ## one training step against torch.nn's, and the time that the import takes
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.imports

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/examples .venv/test .venv/bench: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --editable '.[$(@F)]'
	touch $@
