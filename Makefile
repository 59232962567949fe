# `make demo` and `make test` need Python 3.11 or newer and nothing else.
# A CPU-only torch is smaller; pass its index with PIP_FLAGS (see README, "The model").

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
PIP_FLAGS ?=
BIN := .venv/bin
SAY_WHAT_IS_INSTALLED = printf '%s\n' \
	"Installing torch, transformers and the other dependencies into .venv." \
	"On Linux this takes about 5.6 GB with the CUDA build of torch (the default), or 1.2 GB with a" \
	"CPU-only build: make $(MAKECMDGOALS) PIP_FLAGS='--extra-index-url URL' (see README, \"The model\")."

# Compiled once, also where the environment forbids it: the tests start many processes.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test quick test-peers test-ranks check format bench soak gpu-report screenshots clean

help:
	@echo "make demo         train a small MoE, collapse one layer on purpose and watch it"
	@echo "make test         run all checks and tests, as CI does"
	@echo "make quick        rules, oracles and pictures, without the checks: under a minute"
	@echo "make test-peers   test with other training code and other loggers, in .venv-peers (3.1 GB with a CPU-only torch)"
	@echo "make test-ranks   train on 2 and 4 processes in every layout of --parallel and --expert-parallel, and in pipelines"
	@echo "make check        format, lint, types, import contracts and the size of each package"
	@echo "make format       format the code"
	@echo "make bench        run the benchmarks that docs/benchmarks.md lacks, or those of ONLY='NAME ...'; fill in their numbers"
	@echo "make soak         kill, stop, rotate and fill disks at random for 20 minutes (SOAK=3600: seconds)"
	@echo "make gpu-report   run every check that needs a GPU and write gpu-report.json (64: no GPU)"
	@echo "make screenshots  draw docs/screenshots from a real run"

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11+ with venv found; install one (on Debian: python3-venv) or pass PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv .venv

# pip shows its progress: this takes minutes the first time.
.venv/.train: pyproject.toml | .venv/bin/python
	@$(SAY_WHAT_IS_INSTALLED)
	$(BIN)/pip install $(PIP_FLAGS) -e '.[train]'
	@touch $@

.venv/.dev: pyproject.toml | .venv/bin/python
	@$(SAY_WHAT_IS_INSTALLED)
	$(BIN)/pip install $(PIP_FLAGS) -e '.[dev]'
	@touch $@ .venv/.train

demo: .venv/.train
	@bash examples/demo.sh

check: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/architecture/sizes.py

# One torch thread per worker: two are much slower on two cores. A third worker runs while the tests
# of ranks wait for each other. A file stays with one worker, which prepares its runs once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder
test: check
	$(PYTEST)

# Scenarios and limits hold the rules, other people's code holds the model, files of real writers the
# readers, pictures the screens.
QUICK := tests/diagnosis tests/scenarios tests/model tests/sources tests/extensions/anatomy tests/test_measures.py \
	tests/app/test_pictures.py
quick: .venv/.dev
	$(PYTEST) $(QUICK)

# An environment of its own: some of these need older versions of what the tests use.
# DS_BUILD_OPS=0: nothing is compiled. Of the engines only single modules are imported: a folder apart.
.venv-peers/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11+ with venv found: pass PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv .venv-peers
	DS_BUILD_OPS=0 .venv-peers/bin/pip install $(PIP_FLAGS) -e '.[dev,peers,writers]'
	-.venv-peers/bin/pip install --no-deps --only-binary :all: --target .venv-peers/engines 'sglang>=0.5.23' 'vllm-ascend>=0.23'
	@touch $@

test-peers: .venv-peers/.installed
	OMP_NUM_THREADS=1 .venv-peers/bin/pytest tests/peers

# Every layout of ranks and experts, and every schedule of a pipeline, which takes minutes.
test-ranks: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/training/every_layout.py tests/probe/every_schedule.py

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/.dev
	$(BIN)/python -m benchmarks.bench $(ONLY)

SOAK ?= 1200
soak: .venv/.dev
	$(BIN)/python -m benchmarks.soak --seconds $(SOAK)

# make exits with 2 if the module exits with 1 (a check failed) or 64 (no GPU).
gpu-report: .venv/.train
	$(BIN)/python -m benchmarks.gpu_report

screenshots: .venv/.dev
	$(BIN)/python docs/draw_screenshots.py

clean:
	rm -rf .venv .venv-peers build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
