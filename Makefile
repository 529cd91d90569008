# Everything here makes its own virtual environment: a machine with Python, pip and make is enough.
PYTHON ?= python3
VENV := .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: help install check test test-all torture pod-check demo clean

help:
	@echo "make install | check | test | test-all | torture N=200 | pod-check | demo | clean   (PYTHON=python3.12 for another)"

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

# N kills of a training run; as many damaged checkpoints and hostile files as each has always been given.
N ?= 200
torture: $(READY)
	PYTHONPATH=.:tests $(BIN)/python tests/torture.py 100000 0
	PYTHONPATH=.:tests $(BIN)/python tests/checkpoint_damage.py damage 2000
	PYTHONPATH=.:tests $(BIN)/python tests/checkpoint_damage.py full 100
	PYTHONPATH=.:tests $(BIN)/python tests/kill_torture.py $(N) 0

# Compiles VDT-L/2 for TPU pods on this CPU: minutes a row. ROWS=v5e:4x4/16 for one of them.
pod-check: $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[tpu]' --constraint constraints.txt
	$(BIN)/python benchmarks/pod_check.py $(if $(ROWS),--rows=$(ROWS))

demo: $(READY)
	BIN=$(BIN) sh demo.sh

clean:
	rm -rf .venv-* build *.egg-info .pytest_cache .ruff_cache
