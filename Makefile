.DEFAULT_GOAL := help
.PHONY: help venv demo test lint dev
SHELL := bash

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Two test processes share the cores; torch's own threads would only get in each other's way.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

venv: $(INSTALLED)  ## make .venv with everything the project needs

$(INSTALLED): pyproject.toml constraints.txt
	@python3 -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
		|| { echo "error: python3 is $$(python3 --version); Python 3.11 or 3.12 is needed." >&2; exit 2; }
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	@# uv does not read pip's settings: a folder of wheels that pip knows, such as a CPU build of torch, is passed on.
	links="$${PIP_FIND_LINKS:-$$($(BIN)/python -m pip config get global.find-links 2>/dev/null)}"; \
	if [ -n "$$links" ]; then export UV_FIND_LINKS="$${UV_FIND_LINKS:-$$(echo $$links | tr ' ' ',')}"; fi; \
	$(BIN)/uv pip install --python $(BIN)/python -e '.[dev]' -c constraints.txt
	touch $@

test: $(INSTALLED)  ## run all tests
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(INSTALLED)  ## ruff, mypy and the import contract
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

dev: $(INSTALLED)  ## start the Dagster UI on http://localhost:3000
	source ./env.sh && dagster dev
