# The interpreter that makes .venv; any Python from 3.11 on, for example `make demo PYTHON=python3.12`.
PYTHON ?= python3

python := .venv/bin/python
installed := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-all fuzz lint bench-planner bench-search bench-published docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile

demo: $(installed) ## plan and train a small GPT-2
	$(python) examples/demo.py

test: $(installed) ## run the fast tests
	$(python) -m pytest -n 2

test-all: $(installed) ## run every test, the slow ones too
	$(python) -m pytest -n 2 -m "slow or not slow"

N ?= 200

fuzz: $(installed) ## run N random modules under random plans: make fuzz N=1000
	$(python) -m tests.fuzz $(N)

lint: $(installed) ## check style, format and types
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

bench-planner: $(installed) ## time the planner
	$(python) -m benchmarks.planner

bench-search: $(installed) ## time the search over whole shapes
	$(python) -m benchmarks.search

bench-published: $(installed) ## price published training runs, and plan them
	$(python) -m benchmarks.published

docs: $(installed) ## build the pages of docs/ into build/site
	$(python) -m docs.capabilities
	$(python) -m mkdocs build --strict

clean: ## remove .venv and everything that was built
	rm -rf .venv build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(python):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "autoplan needs Python 3.11 or newer, but '$(PYTHON)' is:" \
	    "$$($(PYTHON) --version 2>&1 || true)." \
	    "Name a newer one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

# torch comes first, under the constraints: left to the resolver it may be another, much larger build.
$(installed): pyproject.toml constraints.txt | $(python)
	$(python) -m pip install --quiet --constraint constraints.txt torch
	$(python) -m pip install --quiet --constraint constraints.txt --editable '.[hf,dev,docs]'
	@touch $@
