# make demo   set up, train on built-in images, export, benchmark
# make test   set up, check style and types, run the default tests
# make lint · make slow · make gpu   parts of it;  make docs   build the site into build/site;  make clean   remove what was built
# The first run installs about 6 GB of packages into .venv; later runs need no network. PYTHON=... chooses the interpreter.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test lint slow gpu docs clean

BIN := .venv/bin
STAMP := .venv/complete
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# without bytecode files each process would compile torch again, which takes seconds
unexport PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE

# an environment that was moved with its checkout, or whose Python is missing, is created again
ifneq ($(wildcard $(STAMP)),)
ifneq ($(shell [ "$$(cat .venv/place 2>/dev/null)" = "$$PWD/.venv" ] && $(BIN)/python -c "print(1)" 2>/dev/null),1)
$(shell rm -f $(STAMP))
endif
endif

help:
	@sed -n '/^# /s/^# //p' Makefile | head -n 4

demo: $(STAMP)
	@$(BIN)/zoo demo

test: lint
	@$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

slow: $(STAMP)
	@$(BIN)/python -m pytest -q -m slow

gpu: $(STAMP)
	@$(BIN)/python -m pytest -q -m gpu

docs: $(STAMP)
	@$(BIN)/python -c "import material, mkdocstrings" 2>/dev/null || $(BIN)/python -m pip install -q -c constraints.txt mkdocs-material "mkdocstrings[python]"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(STAMP): pyproject.toml constraints.txt setup.py tools/setup $(wildcard csrc/*)
	@tools/setup
	@touch $(STAMP)

clean:
	@rm -rf .venv build ./*.egg-info zoo/*.so zoo/_build.json
