# Every target does its own set-up (.ci/setup) and says nothing when there is nothing to set up.

DEMO_ARGS ?=
TEST_ARGS ?=
# A test keeps a core busy for some 60 % of its time: it waits for checkpoints and for boots.
TEST_WORKERS ?= $(shell echo $$(($$(nproc) + 1)))
CHAOS_ARGS ?= --jobs 2
CAMPAIGN_ARGS ?= --rounds 20
DEB_ARGS ?=
BIN := .venv/bin
SHELL := /bin/bash
# Compiled once, not by every command and every worker.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test chaos campaign-postgres campaign-merges check lint deb clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 24

demo: ## protect a real guest, kill its host, lose nothing (DEMO_ARGS='--kill secondary -f json')
	@.ci/setup demo && exec $(BIN)/coloctl demo $(DEMO_ARGS)

test: ## the whole test-suite: unit, QEMU sequences, real guests (TEST_ARGS='-k name')
	@.ci/setup test && exec $(BIN)/pytest -n $(TEST_WORKERS) --dist loadfile $(TEST_ARGS)

chaos: ## every scenario against real pairs (CHAOS_ARGS='--repeat 3 --jobs 2 --artifacts out')
	@.ci/setup demo && exec $(BIN)/coloctl chaos run $(CHAOS_ARGS)

campaign-postgres: ## 45 minutes, root: a Debian with PostgreSQL, moved and killed (CAMPAIGN_ARGS='--help')
	@.ci/setup campaign && PYTHONPATH=tests exec $(BIN)/python tests/campaign/campaign.py $(CAMPAIGN_ARGS)

campaign-merges: ## half an hour: promoted secondaries ended in the middle of slow merges
	@.ci/setup demo && PYTHONPATH=tests exec $(BIN)/python tests/campaign/merges.py

check: lint ## what must hold before every commit, in under a minute: lint, architecture, unit tests
	@COLOCTL_HISTORIES=100 exec $(BIN)/pytest -q -n 4 --hypothesis-profile=quick $(TEST_ARGS) -m unit

lint: ## ruff (rules and format) and mypy --strict
	@.ci/setup venv
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check --diff .
	@$(BIN)/mypy

deb: ## a Debian package of coloctl in dist/ (DEB_ARGS='--python 3.13')
	@.ci/setup venv && exec $(BIN)/python .ci/deb $(DEB_ARGS)

clean: ## remove what was built in this checkout; downloads in the cache folder stay
	@rm -rf .venv .cache build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
