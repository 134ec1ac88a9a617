# `make demo` and `make test` are all a newcomer needs: each sets up what it uses.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Pinned because LIBERO's metadata pulls gigabytes that the simulator never imports; see pyproject.toml.
LIBERO := hf-libero==0.1.4

.PHONY: setup demo test test-all lint format clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt scripts/system_packages.sh
	sh scripts/system_packages.sh
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps $(LIBERO)
	$(BIN)/tgrpo doctor
	touch $@

demo: setup
	$(BIN)/tgrpo train --out data/demo --resume

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Two at a time, a file to each, because many tests wait for processes of their own; one thread each, for two cores.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n 2 --dist loadfile

test-all: lint
	$(BIN)/pytest

# Removes what the commands wrote and the environment; the embedded checkpoints are part of the repository and stay.
clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find data -mindepth 1 -maxdepth 1 ! -name embedded -exec rm -rf {} +
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
