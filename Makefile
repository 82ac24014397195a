# make demo   set up, train, export, benchmark      make test   set up, lint, run the default tests
# Both work offline once .venv is complete. PYTHON=... chooses the interpreter.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test lint slow gpu clean

BIN := .venv/bin
STAMP := .venv/complete
export PATH := $(CURDIR)/.venv/bin:$(PATH)

help:
	@sed -n '1,2s/^# //p' Makefile

demo: $(STAMP)
	@$(BIN)/zoo demo

test: lint
	@$(BIN)/python -m pytest -q

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

slow: $(STAMP)
	@$(BIN)/python -m pytest -q -m slow

gpu: $(STAMP)
	@$(BIN)/python -m pytest -q -m gpu

$(STAMP): pyproject.toml constraints.txt setup.py tools/setup $(wildcard csrc/*)
	@tools/setup
	@touch $(STAMP)

clean:
	@rm -rf .venv build ./*.egg-info zoo/*.so zoo/_build.json
