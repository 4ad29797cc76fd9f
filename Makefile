# Two commands do everything: `make serve` and `make test`. Each creates the environment it needs.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$p && break; done)
# The oldest Python that pyproject.toml allows, for `make test-lowest`.
OLDEST_PYTHON ?= python3.11
HOST ?= 127.0.0.1
PORT ?= 8000
MODEL_STORE ?= model_store
# Any of those with a file in requirements/: cpu or gpu, heif, hub, openvino, parquet, ray, telemetry.
EXTRAS ?= cpu,hub
# PyTorch's builds without CUDA; elsewhere than on PyPI.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

FUZZ_IMAGES ?= 100000
FUZZ_TENSORS ?= 50000
MINUTES ?= 20

# What serves and what tests live apart, so that nothing but `make serve` changes what is served. The second environment
# is stacked on the first: a .pth file shows it those packages, so TensorFlow (a minute, 1.2 GB) is installed once. pip
# never changes what lies outside the environment that it runs in; whatever the tests need otherwise comes first on the path.
VENV ?= .venv
TEST_VENV ?= $(VENV)-test
# The lowest versions that pyproject.toml allows, and what resolves versions: both on their own.
LOWEST_VENV := $(VENV)-lowest
UV_VENV := $(VENV)-uv
# Clients of other servers, which need other versions of some packages than the server and its tests have.
CLIENTS_VENV := $(VENV)-clients
# What builds wheels of releases.
WHEEL_VENV := $(VENV)-wheel
BIN := $(TEST_VENV)/bin
comma := ,
SERVED := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))
LOCKS := base $(subst $(comma), ,$(EXTRAS)) build
# Only what is listed, only files with those hashes. The project itself is built by what is installed, not by what the
# index has today.
LOCKED := -m pip install --quiet --disable-pip-version-check --require-hashes
# What it compiles is left out here, and done by the rule for native kernels.
own = HATCH_BUILD_NO_HOOKS=true $(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	--no-build-isolation --editable .

# The native kernels are compiled beside their sources, so for all environments at once. Without a C compiler one is
# fetched and thrown away again (100 MB); if that fails, TensorFlow's kernels do the work.
KERNELS := service/condconv_serve/runtime/kernels
COMPILE := $(KERNELS)/build.py --fetch requirements/compiler.txt
COMPILE_PROTOS := service/condconv_serve/fronts/grpc/compile_protos.py
NATIVE := $(VENV)/.native

# What Python compiles is kept, wherever it is told not to: hundreds of processes of the tests need the same.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help serve test test-training test-workers test-quick test-lowest test-browser test-clients test-docs test-examples test-parity test-docker test-ray bench bench-native bench-service \
	fuzz soak native check format docs protos lock clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

# Made anew when a lock file or EXTRAS change, so that it holds what the locks say and nothing else.
$(SERVED): $(LOCKS:%=requirements/%.txt)
	@if [ -z "$(PYTHON)" ]; then echo "Python 3.11, 3.12 or 3.13 is needed, but none is on the PATH." >&2; exit 1; fi
	@echo "Installing condconv-serve and what it needs into $(VENV) (about 1.7 GB on disk; once) ..."
	@$(PYTHON) -m venv --clear $(VENV) || { echo "Creating a virtual environment failed. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(VENV)/bin/python $(LOCKED) $(LOCKS:%=--requirement requirements/%.txt)
	@$(call own,$(VENV))
	@touch $@

$(NATIVE): $(SERVED) $(KERNELS)/build.py $(wildcard $(KERNELS)/csrc/*.[ch])
	@$(VENV)/bin/python $(COMPILE) --optional
	@touch $@

$(TEST_VENV)/.installed: $(SERVED) requirements/test.txt | $(NATIVE)
	@echo "Installing what the tests need into $(TEST_VENV), on top of $(VENV) (once) ..."
	@$(VENV)/bin/python -m venv --clear $(TEST_VENV)
	@$(VENV)/bin/python -c 'import site; print(*site.getsitepackages())' > \
		"$$($(BIN)/python -c 'import site; print(*site.getsitepackages())')/served.pth"
	@$(BIN)/python $(LOCKED) --requirement requirements/base.txt --requirement requirements/test.txt
	@$(call own,$(TEST_VENV))
	@touch $@

# Further packages of the tests, each with a lock file of its own name.
$(TEST_VENV)/.installed-%: $(TEST_VENV)/.installed requirements/%.txt
	@$(BIN)/python $(LOCKED) --requirement requirements/$*.txt
	@touch $@

# On top of what serves and what tests. The lock is complete but for TensorFlow, which it would install a second time.
$(CLIENTS_VENV)/.installed: $(TEST_VENV)/.installed requirements/clients.txt requirements/load.txt
	@echo "Installing the clients of other servers into $(CLIENTS_VENV), on top of $(TEST_VENV) (once) ..."
	@$(VENV)/bin/python -m venv --clear $(CLIENTS_VENV)
	@for venv in $(TEST_VENV) $(VENV); do \
		$$venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; \
	done > "$$($(CLIENTS_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth"
	@$(CLIENTS_VENV)/bin/python $(LOCKED) --no-deps --requirement requirements/clients.txt
	@$(CLIENTS_VENV)/bin/python $(LOCKED) --no-deps --requirement requirements/load.txt --target $(CLIENTS_VENV)/load \
		--only-binary :all: --platform manylinux_2_38_$$(uname -m) || echo "perf_analyzer can't be had; its test is skipped"
	@touch $@

$(TEST_VENV)/.bench: pyproject.toml $(TEST_VENV)/.installed
	@echo "Installing the peers: PyTorch, timm, ONNX Runtime, OpenVINO ..."
	@$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --retries 1 --extra-index-url $(TORCH_INDEX) --group bench
	@touch $@

$(UV_VENV)/bin/uv:
	@$(OLDEST_PYTHON) -m venv --clear $(UV_VENV) || { echo "Python 3.11 is needed here: set OLDEST_PYTHON." >&2; exit 1; }
	@$(UV_VENV)/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'

serve: $(SERVED) $(NATIVE)  ## Serve the model store on http://HOST:PORT (HOST=127.0.0.1 PORT=8000 MODEL_STORE=model_store)
	@exec $(VENV)/bin/condconv serve --host $(HOST) --port $(PORT) --model-store $(MODEL_STORE)

# What waits for times to pass has the machine to itself. The others' order is that of tests/slow_first.py, and how many
# run at once says tests/conftest.py.
ALONE := tests/fault/test_slow_clients.py

test: $(TEST_VENV)/.installed  ## Run the test suite, or what ARGS selects
ifeq ($(ARGS),)
	@$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder \
		$(ALONE:%=--ignore=%)
	@$(BIN)/python -m pytest $(ALONE)
else
	@$(BIN)/python -m pytest $(ARGS)
endif

# --quick leaves out tests that are marked tensorflow or slow, and fails those that import TensorFlow all the same.
RUN_QUICK := -m pytest --quiet --quick --numprocesses=logical --maxprocesses=4 --dist=loadfile tests/unit tests/contract

test-quick: $(TEST_VENV)/.installed  ## Run the tests that need no TensorFlow (1 minute)
	@$(BIN)/python $(RUN_QUICK) $(ARGS)

# Only the direct dependencies are at their lowest; what those need is as new as they allow, and may scold them.
$(LOWEST_VENV)/.installed: pyproject.toml | $(UV_VENV)/bin/uv
	@$(OLDEST_PYTHON) -m venv --clear $(LOWEST_VENV)
	@$(UV_VENV)/bin/uv --no-config pip install --quiet --python $(LOWEST_VENV)/bin/python --resolution lowest-direct \
		--editable '.[heif,hub,telemetry]' --group quick
	@touch $@

test-lowest: $(LOWEST_VENV)/.installed  ## The quick tests with the lowest versions that pyproject.toml allows (2 minutes)
	@$(LOWEST_VENV)/bin/python $(RUN_QUICK) -W 'ignore:The anyio.abc.BlockingPortal alias:DeprecationWarning' \
		-W 'ignore:It looks like `register_random`' $(ARGS)

test-browser: $(TEST_VENV)/.installed-browser  ## Try the page in Chromium (3 minutes)
	@command -v chromium >/dev/null || apt-get install -qq -y chromium >/dev/null || echo "The tests need chromium: apt-get install chromium" >&2
	@$(BIN)/python -m pytest -m browser tests/browser $(ARGS)

test-clients: $(TEST_VENV)/.installed $(CLIENTS_VENV)/.installed  ## Ask a server with Triton's, KServe's and TensorFlow Serving's own clients (3 minutes)
	@CLIENTS_VENV=$(CURDIR)/$(CLIENTS_VENV) $(BIN)/python -m pytest -m clients tests/clients $(ARGS)

test-docs: $(TEST_VENV)/.installed  ## Run every command in the documentation, page by page (4 minutes)
	@$(BIN)/python -m pytest -m docs --numprocesses=logical --maxprocesses=2 tests/docs $(ARGS)

test-examples: $(TEST_VENV)/.installed-examples  ## Run the examples, one of which trains and fine-tunes (1 minute)
	@$(BIN)/python -m pytest -m examples tests/examples $(ARGS)

test-parity: $(TEST_VENV)/.installed  ## Import and serve every published network at full size, against the golden numbers, and measure the accuracy (10 minutes)
	@$(BIN)/python -m pytest -m full_parity tests/parity tests/e2e/test_accuracy.py $(ARGS)

test-docker: $(TEST_VENV)/.installed  ## Build the image, run the Compose project, break it (15 minutes; a Docker engine, or root on Debian)
	@$(BIN)/python -m pytest -m docker tests/deploy $(ARGS)

# Its libraries warn of each other.
test-ray: $(TEST_VENV)/.installed  ## Run the service on a Ray cluster of two nodes on this machine, and kill its parts (4 minutes)
	@$(MAKE) --no-print-directory $(TEST_VENV)/.installed-ray || echo "Ray can't be had; its tests are skipped"
	@$(BIN)/python -m pytest -m ray -W default --disable-warnings tests/ray tests/deploy/test_ray_files.py $(ARGS) || { status=$$?; test $$status = 5 && ! $(BIN)/python -c 'import ray' 2>/dev/null; }

test-training: $(TEST_VENV)/.installed  ## Train networks, interrupt that and go on (2 minutes)
	@$(BIN)/python -m pytest -m training --numprocesses=logical --maxprocesses=2 --dist=loadfile tests/unit/training $(ARGS)

# tests/workers.py says which of their tests these are, and what is left out.
test-workers: $(TEST_VENV)/.installed  ## All tests that talk to a started server once more, with several processes (4 minutes)
	@TEST_WORKERS=2 $(BIN)/python -m pytest -m '' --numprocesses=logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder \
		tests/e2e tests/fault tests/load $(ARGS)

test-sanitize: $(TEST_VENV)/.installed  ## Run the native kernels under the compiler's sanitizers (4 minutes; gcc or clang)
	@$(BIN)/python -m pytest -m compiles tests/native/test_sanitizers.py $(ARGS)

# Zig is seen there only, by this path.
test-neon: $(TEST_VENV)/.installed $(WHEEL_VENV)/.installed  ## Run ARM's native kernels in an emulator (2 minutes; qemu-user)
	@PYTHONPATH="$$($(WHEEL_VENV)/bin/python -c 'import site; print(*site.getsitepackages())')" \
		$(BIN)/python -m pytest -m compiles tests/native/test_neon.py $(ARGS)

test-wheel: wheel $(TEST_VENV)/.installed  ## Build the wheels of a release and look into them (3 minutes)
	@WHEEL_PYTHON=$(WHEEL_VENV)/bin/python $(BIN)/python -m pytest -m compiles tests/deploy/test_wheel.py $(ARGS)

bench: $(TEST_VENV)/.bench  ## Measure the engine against what one would pick instead (20 minutes, 16 GB of memory)
	@$(BIN)/python benchmarks/engine_peers.py $(ARGS)

bench-native: $(TEST_VENV)/.bench  ## Measure every architecture with native kernels and without, over its static twin, and a server's memory (an hour)
	@$(BIN)/python benchmarks/native_architectures.py $(ARGS)
	@$(BIN)/python benchmarks/native_twins.py $(ARGS)
	@$(BIN)/python benchmarks/memory.py

bench-service: $(TEST_VENV)/.bench  ## Measure the server against other servers, and under load (30 minutes)
	@command -v wrk >/dev/null || apt-get install -qq -y wrk || { echo "wrk is needed: apt-get install wrk" >&2; exit 1; }
	@$(BIN)/python benchmarks/service_peers.py $(ARGS)
	@$(BIN)/python benchmarks/service_load.py
	@$(BIN)/python benchmarks/service_load.py --precision auto

fuzz: $(TEST_VENV)/.installed  ## Decode damaged images, and send tensors that lie (FUZZ_IMAGES=100000 FUZZ_TENSORS=50000)
	@FUZZ_IMAGES=$(FUZZ_IMAGES) FUZZ_TENSORS=$(FUZZ_TENSORS) $(BIN)/python -m pytest -q -s tests/fault/test_fuzz_images.py \
		tests/fault/test_fuzz_tensors.py

soak: $(TEST_VENV)/.installed  ## Serve changing load, bad images and bad clients for a while (MINUTES=20)
	@$(BIN)/python benchmarks/soak.py --minutes $(MINUTES) $(ARGS)

native: $(SERVED)  ## Compile the native kernels, if they have changed
	@$(VENV)/bin/python $(COMPILE) $(ARGS)

$(WHEEL_VENV)/.installed: requirements/build.txt requirements/compiler.txt
	@$(PYTHON) -m venv --clear $(WHEEL_VENV)
	@$(WHEEL_VENV)/bin/python $(LOCKED) $(^:%=--requirement %)
	@touch $@

wheel: $(WHEEL_VENV)/.installed  ## Build the source distribution and the wheels of a release in dist/ (2 minutes)
	@rm -f dist/condconv_serve-*
	@$(WHEEL_VENV)/bin/python -m hatchling build -t sdist
	@for arch in x86_64 aarch64; do WHEEL_ARCH=$$arch $(WHEEL_VENV)/bin/python -m hatchling build -t wheel || exit 1; done

check: $(TEST_VENV)/.installed  ## Format, lint, types, import contracts, generated documentation, files of deployment
	@$(BIN)/python requirements/lock.py --check
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python docs/generate.py --check
	@$(BIN)/python $(COMPILE_PROTOS) --check
	@$(BIN)/python -m pytest -q -m files tests/deploy tests/docs tests/files

format: $(TEST_VENV)/.installed  ## Rewrite the code in the house format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: $(TEST_VENV)/.installed  ## Renew the generated parts of the documentation
	@$(BIN)/python docs/generate.py

protos: $(TEST_VENV)/.installed  ## Compile the .proto files of the protocols over gRPC
	@$(BIN)/python $(COMPILE_PROTOS)

lock: $(UV_VENV)/bin/uv  ## Renew the lock files in requirements/ from pyproject.toml
	@$(UV_VENV)/bin/python requirements/lock.py

clean:  ## Remove the environments, what was built, and caches
	rm -rf $(VENV) $(TEST_VENV) $(CLIENTS_VENV) $(LOWEST_VENV) $(UV_VENV) $(WHEEL_VENV) dist $(KERNELS)/csrc/build $(KERNELS)/*.so .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
