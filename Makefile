# `make book` and `make test` install what they need; `make help` lists the rest.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
CORES ?= all
PROFILE ?= laptop

# The first Python that is new enough; it must also be able to make an environment (Debian ships that part separately).
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && { echo $$p; break; }; done)
HAS_VENV = $(shell $(PYTHON) -c 'import ensurepip, venv; print("yes")' 2>/dev/null)
NO_PYTHON := Python 3.11 or newer is needed and none was found; install it, or name it: make PYTHON=/path/to/python3
NO_VENV = $(PYTHON) cannot make an environment; install its venv package (Debian, Ubuntu: apt install python3-venv)

.DEFAULT_GOAL := help
.PHONY: help setup book test cluster lint clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s%s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## install everything into .venv

book: $(STAMP) ## run every notebook on this computer and render the book: _build/html/index.html
	$(BIN)/python workflow/run.py workflow/$(PROFILE).yaml --cores $(CORES)
	@echo "The book: _build/html/index.html"

test: $(STAMP) ## run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

cluster: $(STAMP) ## the published sizes on a Slurm cluster; first read workflow/profiles/slurm/config.yaml
	$(BIN)/python workflow/run.py workflow/full.yaml --profile workflow/profiles/slurm

lint: $(STAMP) ## style of code and notebooks
	$(BIN)/ruff check
	$(BIN)/ruff format --check

clean: ## remove what was made: environment, data, local results, book (results/desk and results/full stay)
	rm -rf $(VENV) _build data logs results/laptop results/test .snakemake lenslib.egg-info

# The stamp comes last, so that an installation cut short starts again.
$(STAMP): requirements.lock pyproject.toml
	$(if $(PYTHON),,$(error $(NO_PYTHON)))
	@$(PYTHON) -c '$(NEW_ENOUGH)' || { echo "$(PYTHON) is older than Python 3.11: name a newer one, make PYTHON=..." >&2; exit 2; }
	$(if $(HAS_VENV),,$(error $(NO_VENV)))
	$(PYTHON) -m venv --clear $(VENV)
	awk '/^uv==/ { found = 1 } found { print } found && !/\\$$/ { exit }' requirements.lock > $(VENV)/uv.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps --requirement $(VENV)/uv.txt
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --require-hashes --requirement requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --no-build-isolation --no-deps --editable .
	@touch $@
