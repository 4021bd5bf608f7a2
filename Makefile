# make demo | test | check | bench | soak | crash — everything runs inside .venv, made on first use.
ifeq ($(origin PYTHON), undefined)
# Asked once, and only when it is needed.
PYTHON = $(eval PYTHON := $$(shell python3 deploy/interpreter.py || echo python3))$(PYTHON)
endif
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check format bench soak crash clean

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Forwarder needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.engine: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	$(BIN)/python -m compileall -q forwarder api # as pip does with what it does not leave in place
	touch $@

$(VENV)/.tests: $(VENV)/.engine
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test,check]'
	touch $@

demo: $(VENV)/.engine
	$(BIN)/forwarder demo

test: $(VENV)/.tests
	$(BIN)/python -m pytest

check: $(VENV)/.tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.tests
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.tests
	$(BIN)/python -m benchmarks

MINUTES ?= 10
soak: $(VENV)/.tests
	$(BIN)/python -m benchmarks soak --minutes $(MINUTES)

KILLS ?= 2000
crash: $(VENV)/.tests
	$(BIN)/python -m tests.crash --points --kills $(KILLS)
	$(BIN)/python -m tests.crash --database postgresql --nodes 3 --kills $(KILLS)
	FORWARDER_LONG=1 FORWARDER_RACE=10000 FORWARDER_CUTS=100 \
		$(BIN)/python -m pytest -s tests/crash/test_faults.py tests/crash/test_fan_out.py \
		tests/crash/test_power.py tests/crash/test_sweep.py

clean:
	rm -rf $(VENV) build dist *.egg-info
