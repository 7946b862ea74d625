# Two commands for a new user: `make demo` and `make test`. Every path is relative and quoted: folders with
# spaces work. Settings, all optional:
#   make PYTHON=python3.12 demo        another Python for the environment
#   make PIP_FLAGS="..." demo          more flags for pip, such as an index with smaller, CPU-only PyTorch wheels
#   make DEMO_FLAGS=--small demo       flags of `hapicl demo`
#   make PYTEST_FLAGS="-k masks" test  flags of pytest
#   make TORTURE_FLAGS="--pretrain 100" torture    how often to kill what: benchmarks/torture.py --help
PYTHON ?= python3
PIP_FLAGS ?=
DEMO_FLAGS ?=
PYTEST_FLAGS ?=
TORTURE_FLAGS ?=
VENV := .venv
RUN := $(VENV)/bin/python
PIP := "$(RUN)" -m pip install --disable-pip-version-check --timeout 60 --quiet $(PIP_FLAGS)

.PHONY: demo test torture install install-test docs clean

demo: install
	"$(RUN)" -m hapicl demo $(DEMO_FLAGS)

# The last line tells a long log's reader that nothing above failed.
test: install-test
	"$(RUN)" -m ruff check .
	"$(RUN)" -m ruff format --check .
	"$(RUN)" tests/typecheck.py
	"$(RUN)" -m pytest --numprocesses logical --maxprocesses 8 -r s --durations 10 $(PYTEST_FLAGS)
	@echo "All checks passed: ruff, mypy and the tests."

# What it survives: kills commands, workers and files for a few minutes and prints a table.
torture: install-test
	"$(RUN)" benchmarks/torture.py $(TORTURE_FLAGS)

docs: $(VENV)/.made
	$(PIP) --editable ".[docs]"
	"$(RUN)" -m mkdocs build --strict

install: $(VENV)/.installed

install-test: $(VENV)/.installed-test

# The stamp files make the second run start at once; they are renewed when the requirements change.
$(VENV)/.installed: setup.cfg pyproject.toml $(VENV)/.made
	@echo "Installing hapicl and PyTorch into $(VENV): minutes, and gigabytes of downloads, the first time."
	$(PIP) --editable .
	@touch "$@"

$(VENV)/.installed-test: setup.cfg pyproject.toml $(VENV)/.made
	@echo "Installing hapicl, PyTorch and the test tools into $(VENV): minutes, and gigabytes of downloads, the first time."
	$(PIP) --editable ".[test,eval,dask,clients,parquet,wandb,mlflow,remote]"
	@touch "$(VENV)/.installed" "$@"

# An environment that is there and has pip is kept. Debian and Ubuntu ship venv without pip unless
# python3-venv is installed; a system pip can stand in for it, or else PyPI's own wheel.
$(VENV)/.made:
	@command -v "$(PYTHON)" > /dev/null || { echo "no $(PYTHON): sudo apt install python3 python3-venv, then again"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit("hapicl needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.11 demo" if sys.version_info < (3, 11) else 0)'
	@"$(RUN)" -m pip --version > /dev/null 2>&1 \
	  || "$(PYTHON)" -m venv --clear "$(VENV)" > /dev/null 2>&1 \
	  || { "$(PYTHON)" -m venv --clear --without-pip "$(VENV)" && "$(PYTHON)" -m pip --python "$(RUN)" install --quiet pip; } > /dev/null 2>&1 \
	  || { "$(PYTHON)" -m venv --clear --without-pip "$(VENV)" && "$(PYTHON)" .ci/pip_from_pypi.py "$(RUN)"; } \
	  || { rm -rf "$(VENV)"; echo "$(PYTHON) cannot make an environment with pip, nor fetch pip: sudo apt install python3-venv, then again"; exit 1; }
	@touch "$@"

clean:
	rm -rf "$(VENV)" build dist site demo-output *.egg-info
