# make demo: the whole job on the embedded default. make test: the tests. Both set up .venv first.

VENV := .venv
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)

# Nothing is written outside the checkout.
export XDG_CACHE_HOME := $(CURDIR)/$(VENV)/cache
export JAX_COMPILATION_CACHE_DIR := $(XDG_CACHE_HOME)/jax
export MPLCONFIGDIR := $(XDG_CACHE_HOME)/matplotlib
export PYTEST_DEBUG_TEMPROOT := $(XDG_CACHE_HOME)
# (pip asks rustc for its version, and rustup makes a folder of its own)
export RUSTUP_HOME := $(XDG_CACHE_HOME)/rustup
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# A file's tests share its fixtures, so that one process runs them all, in the order of
# tests/conftest.py. A process takes 2 GB.
PARALLEL := -n logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder --durations=15

.PHONY: demo test lint

demo: $(VENV)/ready
	$(VENV)/bin/python -m samclip_jax.demo --workdir=runs/demo

test: $(VENV)/ready
	JAX_PLATFORMS=cpu $(VENV)/bin/python -m pytest -q $(PARALLEL) -m "not slow and not oracle"

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(VENV)/ready: setup.py
	@test -n "$(PYTHON)" || { echo "make: Python 3.11 or newer with its venv module is needed" \
		"(Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo "setting up $(VENV), once: some minutes"
	@$(PYTHON) -m venv $(VENV)
	@mkdir -p "$(XDG_CACHE_HOME)"
	@TMPDIR="$(XDG_CACHE_HOME)" $(VENV)/bin/python -m pip install -qq --no-cache-dir -e '.[test]'
	@touch $@
