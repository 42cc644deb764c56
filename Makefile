# Everything runs in .venv, made from pyproject.toml and the pins of constraints.txt. PYTHON picks the interpreter.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow bench gates noise startup lint format clean help

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: $(STAMP) ## set up, then inspect Group Normalization on real tensors
	$(RUN)/stones inspect gn --groups 32

test: $(STAMP) ## set up, then lint, types, every stone’s counters and every test but the slow ones
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/stones run profiles/ci.yaml
	$(RUN)/python -m pytest -n 2 --dist worksteal -m "not slow" -q

test-slow: $(STAMP) ## the long checks alone
	$(RUN)/python -m pytest -m slow -q

bench: $(STAMP) ## write docs/performance.md: every stone beside what one would otherwise use (an hour)
	$(RUN)/python tests/performance.py

gates: $(STAMP) ## the speed that is promised, against torch and a copy, one thread
	$(RUN)/stones bench --profile speed

noise: $(STAMP) ## does the bench raise false alarms, and does it find 12.5 % more work?
	$(RUN)/python tests/noise.py

startup: $(STAMP) ## what whole commands cost beside `import torch`
	$(RUN)/python tests/startup.py

lint: $(STAMP) ## ruff and mypy, without changing anything
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

format: $(STAMP) ## let ruff fix and format
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(RUN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean: ## remove the environment and the caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
