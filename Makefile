# Two commands do everything: `make serve` and `make test`. Each creates the environment it needs.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
HOST ?= 127.0.0.1
PORT ?= 8000
MODEL_STORE ?= model_store
EXTRAS ?= cpu,hub
# PyTorch's builds without CUDA; elsewhere than on PyPI.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

FUZZ_IMAGES ?= 100000
MINUTES ?= 20

.DEFAULT_GOAL := help
.PHONY: help serve test test-browser test-examples test-parity test-docker bench bench-service fuzz soak check format docs clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then echo "Python 3.11, 3.12 or 3.13 is needed, but none is on the PATH." >&2; exit 1; fi
	@$(PYTHON) -m venv $(VENV) || { echo "Creating a virtual environment failed. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(PIP) install --quiet --upgrade 'pip>=25.1'

# One stamp per set of packages, renewed when pyproject.toml changes.
$(VENV)/.serve: pyproject.toml | $(BIN)/python
	@echo "Installing condconv-serve and what it needs (about 1.5 GB on disk; once) ..."
	@$(PIP) install --quiet -e '.[$(EXTRAS)]'
	@touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.serve
	@$(PIP) install --quiet --group test
	@touch $@

$(VENV)/.check: pyproject.toml $(VENV)/.serve
	@$(PIP) install --quiet --group check --group test
	@touch $@

$(VENV)/.examples: pyproject.toml $(VENV)/.test
	@$(PIP) install --quiet --group examples
	@touch $@

$(VENV)/.browser: pyproject.toml $(VENV)/.test
	@$(PIP) install --quiet --group browser
	@touch $@

$(VENV)/.bench: pyproject.toml $(VENV)/.test
	@echo "Installing the peers: PyTorch, timm, ONNX Runtime, OpenVINO ..."
	@$(PIP) install --quiet --retries 1 --extra-index-url $(TORCH_INDEX) --group bench
	@touch $@

serve: $(VENV)/.serve  ## Serve the model store on http://HOST:PORT (HOST=127.0.0.1 PORT=8000 MODEL_STORE=model_store)
	@exec $(BIN)/condconv serve --host $(HOST) --port $(PORT) --model-store $(MODEL_STORE)

# What floods a server or looks at the clock has the machine to itself.
ALONE := tests/fault tests/load

test: $(VENV)/.test  ## Run the test suite, or what ARGS selects
ifeq ($(ARGS),)
	@$(BIN)/python -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile $(ALONE:%=--ignore=%)
	@$(BIN)/python -m pytest $(ALONE)
else
	@$(BIN)/python -m pytest $(ARGS)
endif

test-browser: $(VENV)/.browser  ## Try the page in Chromium (3 minutes)
	@command -v chromium >/dev/null || apt-get install -qq -y chromium >/dev/null || echo "The tests need chromium: apt-get install chromium" >&2
	@$(BIN)/python -m pytest -m browser tests/browser $(ARGS)

test-examples: $(VENV)/.examples  ## Run the examples, one of which trains and fine-tunes (1 minute)
	@$(BIN)/python -m pytest -m examples tests/examples $(ARGS)

test-parity: $(VENV)/.test  ## Import and serve every published network at full size, against the golden numbers (5 minutes)
	@$(BIN)/python -m pytest -m full_parity tests/parity $(ARGS)

test-docker: $(VENV)/.test  ## Build the image, run the Compose project, break it (15 minutes; a Docker engine, or root on Debian)
	@$(BIN)/python -m pytest -m docker tests/deploy $(ARGS)

bench: $(VENV)/.bench  ## Measure the engine against what one would pick instead (20 minutes, 16 GB of memory)
	@$(BIN)/python benchmarks/engine_peers.py $(ARGS)

bench-service: $(VENV)/.bench  ## Measure the server against other servers, and under load (30 minutes)
	@command -v wrk >/dev/null || apt-get install -qq -y wrk || { echo "wrk is needed: apt-get install wrk" >&2; exit 1; }
	@$(BIN)/python benchmarks/service_peers.py $(ARGS)
	@$(BIN)/python benchmarks/service_load.py
	@$(BIN)/python benchmarks/service_load.py --precision auto

fuzz: $(VENV)/.test  ## Decode damaged images (FUZZ_IMAGES=100000)
	@FUZZ_IMAGES=$(FUZZ_IMAGES) $(BIN)/python -m pytest -q -s tests/fault/test_fuzz_images.py

soak: $(VENV)/.test  ## Serve changing load, bad images and bad clients for a while (MINUTES=20)
	@$(BIN)/python benchmarks/soak.py --minutes $(MINUTES) $(ARGS)

check: $(VENV)/.check  ## Format, lint, types, import contracts, generated documentation, files of deployment
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python docs/generate.py --check
	@$(BIN)/python -m pytest -q -m files tests/deploy tests/files

format: $(VENV)/.check  ## Rewrite the code in the house format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: $(VENV)/.serve  ## Renew the generated parts of the documentation
	@$(BIN)/python docs/generate.py

clean:  ## Remove the environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
