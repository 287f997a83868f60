.DEFAULT_GOAL := help
.PHONY: help venv demo format check test fuzz test-gpu lint docs dev plain readme bench bench-gpu screenshots durations floors audit soak clean
SHELL := bash

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# uv does not read pip's settings: a folder of wheels that pip knows, such as a CPU build of torch, is passed on.
LINKS = links="$${PIP_FIND_LINKS:-$$($(BIN)/python -m pip config get global.find-links 2>/dev/null)}"; \
	[ -z "$$links" ] || export UV_FIND_LINKS="$${UV_FIND_LINKS:-$$(echo $$links | tr ' ' ',')}"

TRAIN := -m kronos_pipeline.run_training --model-name kronos-nano
DEMO := $(BIN)/python $(TRAIN) --data-dir trainingdata --output-dir artifacts-demo
# As docs/does-training-work.md found: what a ticker's calendar does is learnt where dates are embedded.
DEMO_ADAPTERS := --adapter lora --adapter-targets month_embed,day_embed --learning-rate 1e-2 --average-decay 0.95

# One thread each: two test processes share the cores, and torch's own threads would only get in each other's way.
# Bytecode is kept: without it each process that a test starts compiles the package for a second.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest
# A file's tests share fixtures, so a file goes to a process as a whole; the longest files go first.
IN_TWO := -n 2 --dist loadfile --no-loadscope-reorder

# The UI listens on this machine only; it has no password.
HOST := 127.0.0.1
PORT := 3000

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

venv: $(INSTALLED)  ## make .venv with everything the project needs

$(INSTALLED): pyproject.toml constraints.txt
	@python3 -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
		|| { echo "error: python3 is $$(python3 --version); Python 3.11 or 3.12 is needed." >&2; exit 2; }
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(LINKS); $(BIN)/uv pip install --compile-bytecode --python $(BIN)/python -e '.[dev]' -c constraints.txt
	touch $@

demo: $(INSTALLED)  ## train a checkpoint and adapters on simulated tickers, in minutes, offline, into artifacts-demo
	@echo "1 of 2: a checkpoint over all tickers"
	$(DEMO) --epochs 1 --stride 8
	@echo "2 of 2: an adapter for each ticker, beside the checkpoint"
	$(DEMO) $(DEMO_ADAPTERS) --epochs 3 --stride 2

format: $(INSTALLED)  ## fix and format the Python files
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

check: lint  ## lint and the fast tests, about a minute
	$(PYTEST) $(IN_TWO) -m "not slow"

# FILE=tests/data or FILE=tests/data/test_data_bars.py runs these tests, K="bars and not slow" those whose names match.
test: $(INSTALLED)  ## run all tests, or some: make test FILE=tests/data K=calendar
	$(PYTEST) $(if $(findstring .py,$(FILE)),,$(IN_TWO)) $(FILE) $${K:+-k "$$K"}

durations: $(INSTALLED)  ## run all tests and record how long they take, in tests/durations.json
	$(PYTEST) $(IN_TWO) --store-durations

# The ends of the ranges in pyproject.toml, each in an environment made for it; on Linux the lowest torch is a CUDA build.
floors: $(INSTALLED)  ## run the fast tests with the lowest and the highest versions that pyproject.toml allows
	@failed=; for versions in lowest-direct highest; do \
		ends="$$(mktemp -d)"; trap 'rm -rf "$$ends"' EXIT; python="$$ends/bin/python"; \
		echo "the fast tests with --resolution $$versions"; \
		python3 -m venv "$$ends" && { $(LINKS); } \
		&& $(BIN)/uv pip install --quiet --python "$$python" --resolution "$$versions" -e '.[dev]' \
		&& OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 "$$python" -m pytest $(IN_TWO) -m "not slow" \
		|| failed="$$failed $$versions"; \
		rm -rf "$$ends"; \
	done; [ -z "$$failed" ] || { echo "error: the fast tests failed with --resolution$$failed" >&2; exit 1; }

audit: $(INSTALLED)  ## look up known vulnerabilities of the pinned packages, at PyPI
	$(BIN)/uv tool run pip-audit --strict --no-deps --disable-pip --progress-spinner off -r constraints.txt

EXAMPLES := 10000

# Files that take half a minute in the suite; what is found is printed as an example to repeat.
fuzz: $(INSTALLED)  ## look for input that breaks the parsers, with EXAMPLES=10000 for each test
	FUZZ_EXAMPLES=$(EXAMPLES) $(PYTEST) $(IN_TWO) --timeout 0 --hypothesis-profile=fuzz $(wildcard tests/*/test_*_fuzz.py)

PER_SITE := 1
FROM := 1
SEED := 0

# A line per fault; FROM=400 goes on with a run that was stopped, SEED=1 takes other calls of each site.
faults: $(INSTALLED)  ## let calls to the file system fail in turn; PER_SITE=100000 for each of them
	$(BIN)/python tests/every_fault.py --per-site $(PER_SITE) --from $(FROM) --seed $(SEED)

HISTORIES := 20
nights: $(INSTALLED)  ## play HISTORIES random histories of an unattended machine, with kills and damaged files
	HISTORIES=$(HISTORIES) $(PYTEST) tests/command/test_command_unattended.py --hypothesis-profile search -s --timeout 0

TICKERS := 40
NIGHTS := 10
SEED := 0
# Two machines, of one process at a time each; the suite has tests of the parts.
soak: $(INSTALLED)  ## play NIGHTS nights of TICKERS tickers through Dagster, with faults, and compare with none
	$(BIN)/python tests/soak.py --tickers $(TICKERS) --nights $(NIGHTS) --seed $(SEED)

test-gpu: $(INSTALLED)  ## run the tests that need a CUDA GPU
	@$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' \
		|| { echo "error: torch finds no CUDA device here; run this on a machine with a GPU and a CUDA build of torch." >&2; exit 2; }
	$(BIN)/python -m pytest -m cuda tests/cuda

lint: $(INSTALLED)  ## ruff, mypy and the import contract
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.docs  ## build the documents as a site, without a network, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	@echo "open site/index.html"

$(VENV)/.docs: $(INSTALLED)
	$(LINKS); $(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[dev,docs]' -c constraints.txt
	touch $@

dev: $(INSTALLED)  ## start the Dagster UI on http://127.0.0.1:3000, or with PORT=3001 on another port
	@[[ "$(PORT)" =~ ^[0-9]{1,5}$$ ]] && (( $(PORT) > 0 && $(PORT) < 65536 )) \
		|| { echo "error: PORT is '$(PORT)', and a number from 1 to 65535 is needed." >&2; exit 2; }
	@! (exec 3<>"/dev/tcp/$(HOST)/$(PORT)") 2>/dev/null \
		|| { echo "error: port $(PORT) is taken; choose another: make dev PORT=$$(($(PORT) + 1))" >&2; exit 2; }
	@source ./env.sh && echo "Dagster's UI: http://$(HOST):$(PORT) (data: $${KRONOS_DATA_DIR:-trainingdata}, \
	artifacts: $${KRONOS_OUTPUT_DIR:-artifacts}, instance: $$DAGSTER_HOME). Ctrl-C ends it." \
		&& KRONOS_DAGSTER_UI="$${KRONOS_DAGSTER_UI:-http://$(HOST):$(PORT)}" dg dev --host "$(HOST)" --port "$(PORT)"

plain: $(INSTALLED)  ## train with external/kronos/requirements.txt alone, in an environment made for it
	@set -e; plain="$$(mktemp -d)"; trap 'rm -rf "$$plain"' EXIT; python="$$plain/venv/bin/python"; \
	python3 -m venv "$$plain/venv"; \
	$(LINKS); $(BIN)/uv pip install --quiet --python "$$python" -r external/kronos/requirements.txt; \
	"$$python" $(TRAIN) --adapter lora --data-dir trainingdata/AAPL --output-dir "$$plain/out" --stride 16 --eval-samples 4; \
	ls "$$plain/out/adapters/AAPL/adapter_model.safetensors" "$$plain/out/metrics/evaluation.json"

readme: $(INSTALLED)  ## run the commands of README.md that need neither network nor GPU, into artifacts
	commands="$$($(BIN)/python .ci/readme_commands.py README.md)" && bash -euxo pipefail -c "$$commands"

bench: $(INSTALLED)  ## measure everything beside its alternative, a quarter of an hour, into docs/performance.md
	$(BIN)/python benchmarks/bench.py --write docs/performance.md

bench-gpu: $(INSTALLED)  ## measure sampling and training on a CUDA GPU, into docs/performance.md
	$(BIN)/python benchmarks/gpu.py --write docs/performance.md

# The demo draws the README's picture.
screenshots: demo  ## take the pictures of docs/ui.md and the README, with Chromium, in ten minutes, into docs/images
	$(LINKS); $(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[screenshots]' -c constraints.txt
	$(BIN)/python docs/screenshots.py

clean:  ## remove .venv, caches and artifacts-demo; artifacts and .dagster_home stay
	rm -rf $(VENV) artifacts-demo site *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find .ci benchmarks kronos_pipeline kronostraining tests -name __pycache__ -type d -prune -exec rm -rf {} +
