# Each target works on a fresh machine with Python 3.10 or newer; `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
# make quickstart
DATA ?= digits
# make test: further extras to install, markers instead of the default ones, and what else pytest takes
EXTRAS ?=
MARKERS ?=
JOBS ?= auto
PYTEST_ARGS ?=

BIN := $(VENV)/bin
comma := ,
TEST_EXTRAS := test$(if $(EXTRAS),-$(subst $(comma),-,$(EXTRAS)))
# its name says which extras are installed: .installed-test-crosscheck
INSTALLED := $(VENV)/.installed

.PHONY: help quickstart lists test lint docs docs-links dist clean

help:
	@echo "make quickstart [DATA=fashion-mnist]   train four ensembles, print a table, write a plot"
	@echo "make test [MARKERS=\"not slow\"] [EXTRAS=crosscheck] [PYTEST_ARGS=...] [JOBS=1]"
	@echo "                                       lint, formatting, types and tests"
	@echo "make lint                              lint, formatting and types"
	@echo "make lists                             write the lists that follow from the declarations"
	@echo "make docs                              the documentation, in docs/_build/html"
	@echo "make docs-links                        whether its links lead somewhere; needs a network"
	@echo "make dist                              source distribution and wheel, in dist/"
	@echo "make clean                             remove $(VENV) and everything that was made"
	@echo "PYTHON=python3.12 chooses the Python of a new $(VENV)"

quickstart: $(INSTALLED)-plot
	$(BIN)/python examples/quickstart.py --data $(DATA)

# one thread of torch for each worker: more would wait for each other
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --maxprocesses 8 \
		$(if $(MARKERS),-m "$(MARKERS)") $(PYTEST_ARGS)

lint: $(INSTALLED)-$(TEST_EXTRAS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# of methods, attacks and losses, in the package and on pages
lists: $(INSTALLED)-$(TEST_EXTRAS)
	$(BIN)/python docs/lists.py

# runs the gallery's examples that have changed
docs: $(INSTALLED)-docs
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -b html -W --keep-going docs docs/_build/html

docs-links: $(INSTALLED)-docs
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -b linkcheck docs docs/_build/linkcheck

dist: $(INSTALLED)-$(TEST_EXTRAS)
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) build dist quickstart-results *.egg-info .mypy_cache .ruff_cache .pytest_cache \
		.hypothesis docs/_build docs/gallery docs/api/generated
	find docs/results -mindepth 1 ! -name index.md -delete
	find robust_ensembles tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} + \
		2>/dev/null || true

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) is no Python 3.10 or newer; choose one by PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

.PRECIOUS: $(INSTALLED)-%
$(INSTALLED)-%: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --editable '.[$(subst -,$(comma),$*)]'
	@touch $@
