# Everything is set up by the first command that needs it: `make demo` and `make test` work in a fresh clone.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
DATA ?= demo-data

.PHONY: help install demo test soak check bench clean

help:
	@echo "make demo        train a chat model by SFT, a reward model and PPO, and watch it happen"
	@echo "make test        all tests"
	@echo "make check       lint, types and the quick tests: under 2 minutes"
	@echo "make soak        the tests at full length: under 90 minutes"
	@echo "make bench       the benchmarks; each prints what it measured"
	@echo "make install     make .venv with rlhf in it"
	@echo "make clean       remove what these made, the demo's data too"

install: $(STAMP)

# A no-op until one of these files changes.
$(STAMP): pyproject.toml constraints.txt scripts/install.sh
	@PYTHON="$(PYTHON)" scripts/install.sh
	@touch $@

demo: install
	@$(BIN)/python -m examples.demo --data "$(DATA)" $(ARGS)

test: install
	$(BIN)/python -m pytest -n 2 -m "not soak" $(ARGS)

soak: install
	$(BIN)/python -m pytest -m soak -s $(ARGS)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 -m quick -q $$(grep -rl --include='test_*.py' 'mark\.quick' tests) $(ARGS)

bench: install
	@for name in startup reporting sft_throughput dpo_throughput classify api_load load rollout "rollout --zero3" ppo \
			kubernetes_burst kubernetes_end kubernetes_rest; do \
		echo "== benchmarks.$$name"; $(BIN)/python -m benchmarks.$$name || echo "== it ended with $$?"; \
	done

clean:
	rm -rf .venv demo-data rlhf-data build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
