# Everything here makes its own virtual environment: a machine with Python, pip and make is enough.
PYTHON ?= python3
VENV := .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
BIN := $(VENV)/bin
CORE := $(VENV)/.ready-core
READY := $(VENV)/.ready
READY_ALL := $(VENV)/.ready-all
GPU := .gpu/$(VENV:.venv-%=%)
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help install check test test-all docs torture pod-check gpu-check bench demo eval-demo eval-demo-commit clean

help:
	@echo "make install | check | test | test-all | docs | torture N=200 | pod-check | gpu-check | bench | demo | eval-demo | clean"
	@echo "PYTHON=python3.12 for another Python"

install: $(READY)

# What the demo needs; the tools of development come on top.
$(CORE): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable . --constraint constraints.txt
	@touch $(CORE)

$(READY): $(CORE)
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --constraint constraints.txt
	@touch $(READY)

# The slow tests need what the metrics, the page, the notebooks and the trackers need; the browser itself is the machine's, or its test is skipped.
$(READY_ALL): $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[dev,app,browser,docs,emulator,eval,gcs,notebook,trackio,wandb]' --constraint constraints.txt
	@touch $(READY_ALL)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# Most of the time is compilation, which takes two thirds as long with little optimisation; test-all has XLA's default.
test: $(READY)
	XLA_FLAGS="$$XLA_FLAGS --xla_backend_optimization_level=0" $(PYTEST) -m "not slow"

test-all: $(READY_ALL)
	$(PYTEST)

# The site, as files: build/site/index.html.
docs: $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[docs]' --constraint constraints.txt
	$(BIN)/mkdocs build --strict

# N kills of a training run, and 40 of one of two processes; as many damaged checkpoints and hostile files as each has
# always been given. Run it again to resume; build/torture.jsonl and build/hosts.jsonl have what was found.
N ?= 200
torture: $(READY)
	PYTHONPATH=.:tests $(BIN)/python tests/torture/parts.py build/torture.jsonl $(N)
	PYTHONPATH=.:tests $(BIN)/python tests/torture/hosts.py 40 build/hosts.jsonl
	PYTHONPATH=.:tests $(BIN)/python tests/torture/values.py 300 0
	PYTHONPATH=.:tests $(BIN)/python tests/torture/working_directories.py

# Compiles VDT-L/2 for TPU pods on this CPU: minutes per row. ROWS=v5e:4x4/16 for one of them.
pod-check: $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[tpu]' --constraint constraints.txt
	$(BIN)/python benchmarks/pod_check.py $(if $(ROWS),--rows=$(ROWS))

# The compiler for NVIDIA GPUs, of jaxlib's version, in a folder of its own: a CUDA plugin without a driver logs errors.
$(GPU)/.ready: $(READY)
	rm -rf $(GPU)
	jaxlib=$$($(BIN)/python -c 'import jaxlib; print(jaxlib.__version__)') && $(BIN)/python -m pip install --quiet --no-deps \
	  --target $(GPU) --constraint constraints.txt jax-cuda13-pjrt==$$jaxlib jax-cuda13-plugin==$$jaxlib \
	  nvidia-cuda-nvcc nvidia-nvvm nvidia-cudnn-cu13
	@touch $@

# Compiles training, sampling and the autoencoder for an H100 on this CPU: minutes per row. ROWS=S/2 for one of them.
gpu-check: $(GPU)/.ready
	PYTHONPATH=.:$(GPU) $(BIN)/python benchmarks/gpu_check.py $(if $(ROWS),--rows=$(ROWS))

# The CPU rows of docs/benchmarks.md. OFFICIAL=FOLDER, a clone of github.com/RERV/VDT, adds those beside it, and installs torch.
bench: $(READY)
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/speed.py
ifdef OFFICIAL
	$(BIN)/python -m pip install --quiet --editable '.[official]' --constraint constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps timm --constraint constraints.txt
	$(BIN)/python benchmarks/compare_official.py --official=$(OFFICIAL) --repeats=3
else
	@echo "not run beside the official code: make bench OFFICIAL=FOLDER, a clone of github.com/RERV/VDT"
endif

demo: $(CORE)
	BIN=$(BIN) sh demo.sh

# The bundled demo checkpoint, on all tasks, against the committed report; and the report anew.
eval-demo: $(READY_ALL)
	$(BIN)/python benchmarks/eval_demo.py --fresh

eval-demo-commit: $(READY_ALL)
	$(BIN)/python benchmarks/eval_demo.py --fresh --commit

clean:
	rm -rf .venv-* .gpu build *.egg-info .pytest_cache .ruff_cache
