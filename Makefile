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

.PHONY: demo test lint coverage docs bench clean

demo: $(STAMP)
	$(BIN)/gas demo

# One thread a process: two test processes with two OpenMP threads each starve each other on two cores.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# A report, not a gate: pages in build/coverage.
coverage: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report=term --cov-report=html:build/coverage

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, into build/docs: offline, warnings are errors.
docs: $(STAMP)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs build/docs

# About a quarter of an hour on two cores; on a machine with CUDA: make bench DEVICE=cuda
DEVICE ?= cpu
bench: $(STAMP)
	$(BIN)/python benchmarks/memory.py --device $(DEVICE)
	$(BIN)/python benchmarks/throughput.py --device $(DEVICE)
	$(BIN)/python benchmarks/precision.py --device $(DEVICE)
	$(BIN)/python benchmarks/sampler_overhead.py --device $(DEVICE)
	$(BIN)/python benchmarks/scheduler_step.py
	$(BIN)/python benchmarks/processes.py
	$(BIN)/python benchmarks/page.py

# Other versions, as the CI workflow tests them: make test TORCH=2.6.* PINS="diffusers==0.35.* transformers==4.57.*"
TORCH ?= 2.13.0
PINS ?= -c constraints.txt

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed $(PINS) torch==$(TORCH)
	$(BIN)/python -m pip install --quiet $(PINS) torch==$(TORCH) -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
