# Two commands for a new user: `make demo` and `make test`. Every path is relative and quoted: folders with spaces work.
# The Python to build the environment with: make PYTHON=python3.12 demo
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test install install-test clean

demo: install
	"$(RUN)" -m hapicl demo

test: install-test
	"$(RUN)" -m ruff check .
	"$(RUN)" -m ruff format --check .
	"$(RUN)" tests/typecheck.py
	"$(RUN)" -m pytest -n 2

install: $(VENV)/.installed

install-test: $(VENV)/.installed-test

# The stamp files make the second run start at once; they are renewed when the dependencies change.
$(VENV)/.installed: setup.cfg pyproject.toml | $(VENV)/bin/python
	"$(RUN)" -m pip install --quiet --editable .
	touch "$@"

$(VENV)/.installed-test: setup.cfg pyproject.toml | $(VENV)/bin/python
	"$(RUN)" -m pip install --quiet --editable ".[test,eval,dask]"
	touch "$@" "$(VENV)/.installed"

$(VENV)/bin/python:
	"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hapicl needs Python 3.11 or newer: make PYTHON=python3.11 demo")'
	"$(PYTHON)" -m venv "$(VENV)" || { rm -rf "$(VENV)"; echo "no venv module: sudo apt install python3-venv, then again"; exit 1; }

clean:
	rm -rf "$(VENV)" build dist *.egg-info
