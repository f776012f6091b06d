# `make demo` and `make test` set up everything they need in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest --durations=10
# Processes that run tests side by side; make test WORKERS=1 runs them one after the other.
WORKERS ?= 2
PARALLEL := $(PYTEST) --numprocesses $(WORKERS) --dist worksteal
export HF_HUB_OFFLINE ?= 1
# Without cached bytecode every process compiles torch, transformers and Ray anew: 25 s instead of 10 s to start a server.
unexport PYTHONDONTWRITEBYTECODE
ARGS ?=
# Where `make audit` asks: pypi or osv.
SERVICE ?= osv

.PHONY: docs screenshots setup demo serve check-tools test test-slow test-slow-system test-slow-others test-peft test-compose lint lock audit bench bench-full clean

# Every file by its hash, but for torch, whose builds differ by index. Bytecode is written when a module is first imported:
# most never are.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --no-compile --require-hashes --no-deps -r docker/lock/$(1).txt
	$(PIP) install --quiet --no-compile -c constraints.txt --no-build-isolation -e ".[$(1)]"
endef

$(VENV)/.demo: pyproject.toml docker/lock/demo.txt
	$(call install,demo)
	touch $@

$(VENV)/.dev: pyproject.toml docker/lock/dev.txt
	$(call install,dev)
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

# What pip cannot install, looked for before anything else.
check-tools:
	@missing=""; \
	command -v chromium >/dev/null || missing="$$missing chromium"; \
	ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || missing="$$missing postgresql"; \
	test -z "$$missing" || { \
	  echo "The tests need:$$missing. On Debian and Ubuntu:" >&2; \
	  echo "  sudo apt-get update && sudo apt-get install -y --no-install-recommends$$missing" >&2; exit 1; }

test: check-tools lint
	$(PARALLEL) -m "not slow" --cov --cov-report= $(ARGS)
	@echo "lines covered: $$($(BIN)/coverage report --format=total) % (without what tests run in processes of their own)"

test-slow: check-tools $(VENV)/.dev test-slow-system test-slow-others

# Tests that start clusters and kill processes run one at a time, with nothing beside them.
test-slow-system:
	$(PYTEST) tests/system -m slow $(ARGS)

# Tests that use a database also run on PostgreSQL, with a cluster for each process; test_tasks is about training.
test-slow-others:
	$(PARALLEL) tests/cdka tests/contracts tests/security tests/service tests/workers -m slow $(ARGS)
	$(PARALLEL) tests/contracts tests/security tests/service tests/workers --ignore tests/workers/tasks/test_tasks.py \
	  -m "not slow or both_databases" \
	  --database postgresql $(ARGS)

# Lock files with hashes, from constraints.txt and pyproject.toml.
lock: $(VENV)/.dev
	$(BIN)/python docker/lock.py

# Known vulnerabilities of the pinned versions, from the advisory databases of PyPI and OSV; needs the network.
audit: $(VENV)/.dev
	test -x $(VENV)/audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)/audit && $(VENV)/audit/bin/pip install --quiet pip-audit==2.10.1; }
	$(VENV)/audit/bin/pip-audit --disable-pip --no-deps -r constraints.txt --vulnerability-service $(SERVICE)

# The reference pages, from the code.
docs: $(VENV)/.dev
	$(BIN)/python docs/generate.py

# The documentation's pictures of the dashboard, from the demo's study.
screenshots: $(VENV)/.dev
	$(BIN)/python docs/screenshots.py

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
	$(BIN)/python -m benchmarks.dashboard

bench-full: $(VENV)/.dev
	$(BIN)/python -m benchmarks.adapter --full
	$(BIN)/python -m benchmarks.workers --full

clean:
	rm -rf $(VENV) .cdka dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
