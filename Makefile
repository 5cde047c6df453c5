.PHONY: install demo ui test test-slow test-docs docs check fuzz wheelhouse install-dev clean

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/wardround demo

ui: install
	$(BIN)/wardround ui

test: install-dev
	$(ONE_THREAD) $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -q

test-slow: install-dev
	$(ONE_THREAD) $(BIN)/pytest -q -m slow

test-docs: install-dev
	$(BIN)/pytest -q tests/test_readme.py models privacy sites flows

# The pages as a website in site/, which opens without a server; warnings are errors.
docs: install-dev
	$(BIN)/python docs/make_tables.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

check: install-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Everything that a hospital without a way to PyPI installs: pip install --no-index --find-links wheelhouse wardround
wheelhouse: $(VENV)/.installed
	rm -rf wheelhouse
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --constraint constraints.txt --wheel-dir wheelhouse .

FUZZ_SECONDS ?= 300
fuzz: install-dev
	$(ONE_THREAD) $(BIN)/python tests/fuzz_readers.py --seconds $(FUZZ_SECONDS)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
