# Everything from a bare checkout with Python 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Threads that wait sleep instead of spinning on a processor that others need, unless any of these settings is yours.
# `gas` does the same by itself.
ifeq (,$(OMP_WAIT_POLICY)$(GOMP_SPINCOUNT)$(KMP_BLOCKTIME)$(KMP_LIBRARY))
export OMP_WAIT_POLICY := PASSIVE
export KMP_BLOCKTIME := 0
endif

.PHONY: demo test lint bench clean

demo: $(STAMP)
	$(BIN)/gas demo

# One thread a process: two test processes with two OpenMP threads each starve each other on two cores.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# About a quarter of an hour on two cores; on a machine with CUDA: make bench DEVICE=cuda
DEVICE ?= cpu
bench: $(STAMP)
	$(BIN)/python bench/memory.py --device $(DEVICE)
	$(BIN)/python bench/throughput.py --device $(DEVICE)
	$(BIN)/python bench/precision.py --device $(DEVICE)
	$(BIN)/python bench/sampler_overhead.py --device $(DEVICE)
	$(BIN)/python bench/scheduler_step.py
	$(BIN)/python bench/processes.py
	$(BIN)/python bench/page.py

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
