# Thin targets: each calls one tool, and the tools read pyproject.toml.

# Overridable: the interpreter, where the environment lies, which lock file fills it, and how many
# processes share the tests (each runs one thread: threads of several would fight for the cores).
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	$$p -c '$(PROBE)' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
LOCK ?= requirements.lock
WORKERS ?= 2

# What `make leaderboard` and `make report` are about; SEEDS (0,1,2) and ARGS go to `ltbench bench run`.
SUITE ?= cifar10_lt_small
SEEDS ?=
ARGS ?=

# Folder of images (train/<class>/*) that `make speed` measures on; default: noise.
ROOT ?=
SPEED := $(filter-out %/timing.py %/trainings.py %/tables.py %/graphs.py %/gpu_check.py, \
	$(wildcard benchmarks/speed/*.py))

# A name on PATH can be a shim of a version manager that refuses to run: ask each candidate.
PROBE := import ensurepip, sys; sys.exit(sys.version_info < (3, 11))
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Seconds of silence before a download fails: torch's wheels are large.
export UV_HTTP_TIMEOUT ?= 300

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: install
install: $(INSTALLED) ## Build the environment in .venv from the lock file

.PHONY: demo
demo: $(INSTALLED) ## Train VS loss + SAM on a long tail of handwritten digits, in under a minute
	$(BIN)/ltbench fit --config configs/vssam_digits.yaml

.PHONY: smoke
smoke: $(INSTALLED) ## Train every method for a few epochs on digits, then table and report
	$(BIN)/ltbench bench run smoke
	$(BIN)/ltbench leaderboard smoke
	$(MAKE) report SUITE=smoke

.PHONY: leaderboard
leaderboard: $(INSTALLED) ## Run a suite, or go on with it, and print its table (SUITE= SEEDS= ARGS=)
	$(BIN)/ltbench bench run $(SUITE) $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)
	$(BIN)/ltbench leaderboard $(SUITE)

.PHONY: report
report: $(INSTALLED) ## Write a suite's report as one HTML file (SUITE=)
	$(BIN)/ltbench leaderboard $(SUITE) --output runs/bench/$(SUITE).html

.PHONY: speed
speed: $(INSTALLED) ## Measure every goal on speed, in under half an hour, and write the page (ROOT=)
	failed=; for script in $(SPEED); do \
		$(BIN)/python $$script $(if $(ROOT),--root "$(ROOT)") || failed="$$failed $$script"; done; \
	$(BIN)/python benchmarks/speed/tables.py; \
	test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

.PHONY: gpu-check
gpu-check: $(INSTALLED) ## On a machine with a GPU: test and measure what only it can tell, in ten minutes
	$(BIN)/python benchmarks/speed/gpu_check.py $(ARGS)

.PHONY: test
test: lint type unit ## Lint, types and the quick tests

.PHONY: unit
unit: $(INSTALLED) ## The quick tests alone
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS)

.PHONY: test-all
test-all: lint type ## Lint, types and all tests, the slow ones too
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) -m ''

.PHONY: lint
lint: $(INSTALLED) ## Style and common mistakes
	$(BIN)/ruff check
	$(BIN)/ruff format --check

.PHONY: type
type: $(INSTALLED) ## Types
	$(BIN)/mypy

.PHONY: lock
lock: | $(BIN)/uv ## Resolve pyproject.toml into the lock file (LOCK_ARGS=--upgrade for newer versions)
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --custom-compile-command 'make lock' \
		--quiet --output-file $(LOCK) $(LOCK_ARGS)

.PHONY: clean
clean: ## Remove the environment and the caches; keep data and runs
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The lock pins uv too: pip installs it, and uv installs the rest.
$(BIN)/uv:
	$(if $(PYTHON),,$(error ltbench needs Python 3.11 or newer with the venv module on PATH))
	$(PYTHON) -m venv $(VENV)
	sed -n '/^uv==/,/[^\]$$/p' requirements.lock > $(VENV)/uv.txt
	$(BIN)/python -m pip install --quiet --require-hashes -r $(VENV)/uv.txt

# --no-build-isolation: the build backend is the locked one too.
$(INSTALLED): $(LOCK) pyproject.toml | $(BIN)/uv
	$(BIN)/uv pip install --python $(BIN)/python --require-hashes -r $(LOCK)
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@
