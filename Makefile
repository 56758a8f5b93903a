# Every target works on a fresh machine with Python >= 3.11, make and a package index.
PYTHON ?= python3
VENV   ?= .venv
TEST_PROCESSES ?= 4
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
unexport PYTHONDONTWRITEBYTECODE   # tests start hundreds of processes: what they import is compiled once
CODE   := router/apikeyrouter service/apikeyrouter_proxy service/apikeyrouter_dashboard tests benchmarks tools

.DEFAULT_GOAL := help
.PHONY: audit go-tools helm-check help setup run demo docs test lint format types imports lua-lint laws exact faults mutants bench bench-peers bench-scale exactness guard guard-keep ci constraints clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; name one: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[proxy,dashboard,dev]'
	@touch $(READY)

setup: $(READY) ## create .venv with everything pinned in constraints.txt

run: $(READY) ## the service from nothing on port 8000
	@$(BIN)/apikeyrouter quickstart

demo: $(READY) ## live traffic over simulated providers, with a live table
	@$(BIN)/apikeyrouter demo

docs: $(READY) ## the reference of the Python API, as HTML in build/reference
	@$(BIN)/python -m tools.reference

test: $(READY) ## the whole test suite, real Valkey servers included, in TEST_PROCESSES processes (4: they wait more than they work)
	$(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

lint: $(READY) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## ruff: put imports and format right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY) ## mypy, strict, on sources, tests, benchmarks and tools
	$(BIN)/mypy $(CODE)

imports: $(READY) ## import contracts: imports run one way
	$(BIN)/lint-imports --no-cache

go-tools: $(READY) ## build helm and promtool into build/tools, where there is Go
	@$(BIN)/python -m tools.go_tools

helm-check: go-tools ## the chart: lint, render, schemas, its containers run; the alert rules' unit tests
	$(BIN)/python -m pytest -q tests/deploy/test_helm.py tests/deploy/test_monitoring.py

audit: $(READY) ## known vulnerabilities of the pinned dependencies, where there is a service to ask
	@$(BIN)/python -m tools.audit

lua-lint: $(READY) ## luacheck over the scripts as they are built
	$(BIN)/python -m tools.lua_lint

laws: $(READY) ## break each accounting law with a patch and see a test turn red
	$(BIN)/python -m tests.laws

exact: $(READY) ## a million settlements on each engine, and the sum to the nano-dollar
	EXACT_SETTLEMENTS=1000000 $(BIN)/python -m pytest -q tests/router/test_exactness.py --durations=2

faults: $(READY) ## the fault laboratory: 100,000 reservations under seeded faults, every promised figure, real servers and processes
	$(BIN)/python -m tests.faults
	AKR_LONG=1 $(BIN)/python -m pytest -q tests/topologies tests/cells tests/faults

mutants: $(READY) ## each line of the scripts taken out or negated: which of them nobody sees; an hour or two
	$(BIN)/python -m tests.faults.mutants

bench: $(READY) ## CPU per request against the reference pass-through
	$(BIN)/python -m benchmarks.run

bench-peers: $(READY) ## ours and other gateways, the same upstream: CPU, throughput, latency, streams, memory; 20 minutes beside their installation
	$(BIN)/python -m benchmarks.install_peers
	$(BIN)/python -m benchmarks.comparison

bench-scale: $(READY) ## where a server saturates, and what keys, calls, reservations take; five minutes
	$(BIN)/python -m benchmarks.saturation
	$(BIN)/python -m benchmarks.cells
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.footprint

exactness: $(READY) ## how exact ours is under overload, with a process killed, with Redis silent; ten minutes
	$(BIN)/python -m benchmarks.exactness --ours

guard: $(READY) ## what fixed requests make the worker execute: fails when it is a tenth more than what is kept
	@$(BIN)/python -m benchmarks.guard

guard-keep: $(READY) ## keep what is counted now as what is allowed
	@$(BIN)/python -m benchmarks.guard --keep

ci: lint types imports guard lua-lint audit go-tools test laws ## every check: what .ci/run runs

constraints: ## resolve every dependency anew and pin it in constraints.txt
	rm -rf $(VENV).new
	$(PYTHON) -m venv $(VENV).new
	$(VENV).new/bin/pip install -q --disable-pip-version-check -e '.[proxy,dashboard,dev]'
	$(VENV).new/bin/pip freeze --exclude-editable | grep -E '^[A-Za-z0-9._-]+==' > constraints.txt
	rm -rf $(VENV).new

clean: ## remove the environment and caches
	rm -rf $(VENV) $(VENV).new .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dist
