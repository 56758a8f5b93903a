# Every target works on a fresh machine with Python >= 3.11, make and a package index.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup run test lint types imports lua-lint ci bench laws demo constraints clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[proxy,dev]'
	@touch $(READY)

setup: $(READY) ## create .venv with everything pinned in constraints.txt

run: $(READY) ## the service from nothing on port 8000
	@$(BIN)/apikeyrouter quickstart

demo: $(READY) ## live traffic over simulated providers, with a live table
	@$(BIN)/apikeyrouter demo

test: $(READY) ## the whole test suite, real Valkey servers included
	$(BIN)/python -m pytest

lint: $(READY) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## mypy, strict, on sources and tests
	$(BIN)/mypy router/apikeyrouter service/apikeyrouter_proxy tests

imports: $(READY) ## import contracts: imports run one way
	$(BIN)/lint-imports

lua-lint: $(READY) ## luacheck over the scripts as they are built
	$(BIN)/python -m tools.lua_lint

laws: $(READY) ## break each accounting law with a patch and see a test turn red
	$(BIN)/python -m tests.laws

bench: $(READY) ## CPU per request against the reference pass-through
	$(BIN)/python -m benchmarks.run

ci: lint types imports lua-lint test laws ## what .ci/run runs

constraints: ## write constraints.txt from what .venv holds now
	$(BIN)/pip freeze --exclude-editable | grep -vE '@ (file|https?)' > constraints.txt

clean: ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
