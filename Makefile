# Everything here makes its own virtual environment: a machine with Python, pip and make is enough.
PYTHON ?= python3
VENV := .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: help install check test test-all torture demo clean

help:
	@echo "make install | check | test | test-all | torture | demo | clean   (PYTHON=python3.12 for another Python)"

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --constraint constraints.txt
	@touch $(READY)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

test: $(READY)
	$(PYTEST) -m "not slow"

test-all: $(READY)
	$(PYTEST)

torture: $(READY)
	PYTHONPATH=.:tests $(BIN)/python tests/torture.py 100000 0
	PYTHONPATH=.:tests $(BIN)/python tests/torture_videos.py 10000 0

demo: $(READY)
	BIN=$(BIN) sh demo.sh

clean:
	rm -rf .venv-* build *.egg-info .pytest_cache .ruff_cache
