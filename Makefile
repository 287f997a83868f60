.DEFAULT_GOAL := help
.PHONY: help venv
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

venv: $(STAMP)  ## make .venv with everything the project needs

$(STAMP): pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(PY) -m pip install --quiet uv
	links="$$($(PY) -m pip config get global.find-links 2>/dev/null)"; \
	if [ -n "$$links" ]; then export UV_FIND_LINKS="$$links"; fi; \
	$(VENV)/bin/uv pip install --python $(PY) -e '.[dev]' -c constraints.txt
	touch $@
