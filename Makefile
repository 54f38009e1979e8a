# make demo: from nothing to a picture of digits. make test: all that must hold;
# make fault-test: what must hold when something goes wrong.
SUITS := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
# the newest Python that suits and really runs
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
  $$python -c '$(SUITS)' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin

.PHONY: setup demo check test test-slow fault-test test-gpu cluster-test
.PHONY: bench bench-gpu clean

setup: .venv/installed

demo: setup
	@set -e; run=$$($(BIN)/dcli train +exp=digits); \
	  echo "$(BIN)/dcli sample ckpt=$$run steps=50"; \
	  samples=$$($(BIN)/dcli sample ckpt=$$run steps=50); \
	  echo "$$samples/grid.png"

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/yamllint -d "{extends: relaxed, rules: {line-length: {max: 100}}}" configs

test: export OMP_NUM_THREADS = 1
test: check
	$(BIN)/pytest -n 2

test-slow: export OMP_NUM_THREADS = 1
test-slow: .venv/installed-dev
	$(BIN)/pytest -n 2 -m slow

fault-test: export OMP_NUM_THREADS = 1
fault-test: .venv/installed-dev
	$(BIN)/pytest -n 2 -m fault

test-gpu: .venv/installed-dev
	$(BIN)/pytest -m gpu

# a SLURM of two virtual nodes on this machine: Debian, as root
cluster-test: export OMP_NUM_THREADS = 1
cluster-test: .venv/installed-dev
	$(BIN)/pytest -m cluster tests/cluster

# beside the packages that do some of the same, each in an environment under .bench
bench: .venv/installed-dev
	$(BIN)/python scripts/bench

# nine minutes on a CUDA device; without one a small mode, which shows that it runs
bench-gpu: .venv/installed-dev
	$(BIN)/python scripts/bench/gpu.py --docs

clean:
	rm -rf .venv .bench dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/bin/python:
	@$(PYTHON) -c '$(SUITS)' 2>/dev/null || { \
	  echo "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/installed-dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ .venv/installed
