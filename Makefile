# Each target sets itself up: a virtual environment in .venv, and in it what the target needs. Nothing is redone that has
# not changed. PYTHON chooses the interpreter that the environment is made with.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo reports docs test test-all lint types bench clean

demo: .venv/examples ## train the disk network, and draw what it learned to disk.png
	$(BIN)/python examples/disk.py --plot disk.png

reports: .venv/examples ## repeat the experiments of five reports with fundl and torch.nn: tables and pictures in reports/
	$(BIN)/python examples/reports.py all --out reports

docs: .venv/docs ## the site, in docs/_build/html
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet docs docs/_build/html

test: lint types .venv/oldest-mypy ## all checks: style, types, tests
	$(BIN)/pytest -n auto --dist worksteal -m "not slow"

test-all: lint types .venv/oldest-mypy ## the same with the slow sweeps
	$(BIN)/pytest -n auto --dist worksteal

.venv/oldest-mypy: .venv/test ## the oldest mypy that the plugin works with, beside the one that checks
	$(BIN)/pip --disable-pip-version-check install --quiet --target $@ mypy==1.19.0
	touch $@

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/test
	$(BIN)/mypy

bench: .venv/bench ## fundl and its peers side by side: tables and a picture in reports/benchmarks
	$(BIN)/python -m benchmarks --out reports/benchmarks

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/docs .venv/examples .venv/test .venv/bench: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --editable '.[$(@F)]'
	touch $@
