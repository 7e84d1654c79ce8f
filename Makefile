# make demo and make test need Python >= 3.11 and nothing else: each creates .venv, installs and does its job.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test slow torture lint format clean

demo: $(INSTALLED)
	$(BIN)/nolabel demo

test: lint
	$(BIN)/python -m pytest

slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

torture: $(INSTALLED)  # the kills stop after 20 minutes; longer: make torture KILLS=1000 MINUTES=120
	$(BIN)/python -m pytest -m "slow or not slow" tests/torture tests/runs/test_checkpoint.py -s

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "nolabel needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Installing into .venv: several GB, a few minutes, once."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

clean:
	rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache
