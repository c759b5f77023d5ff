# make quickstart: train on built-in pictures for some minutes, then sample.
# make check: lint, types and the quick tests, in 90 seconds.   make test: everything CI checks.

PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

.PHONY: quickstart check test lint docs benchmark clean

quickstart: .venv/installed
	$(BIN)/python train.py quickstart
	$(BIN)/python sample.py saved_weights/quickstart.checkpoint 0.7 --seed 0

check: lint
	$(PYTEST) -m "not slow"

test: lint
	$(PYTEST)

lint: .venv/installed-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed
	$(BIN)/python docs/make_pages.py

benchmark: .venv/installed
	$(BIN)/python benchmarks/train_step.py

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or later is needed, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install -e .
	@touch $@

.venv/installed-for-tests: .venv/installed
	$(BIN)/python -m pip install --quiet -e '.[test]'
	@touch $@

clean:
	rm -rf .venv
