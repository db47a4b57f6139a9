# The whole of the daily work. Each target does the set-up it needs; a second set-up does nothing.

PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: setup demo test slow gpu check docs bench clean

setup: .venv/ready

.venv/ready: pyproject.toml requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

demo: setup
	$(BIN)/foveal demo --out runs/demo

test: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --quiet -m "not slow"

slow: setup
	$(BIN)/python -m pytest --quiet -m slow

gpu: setup
	$(BIN)/python -m pytest --quiet -rs -m gpu

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory docs

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: setup
	$(BIN)/foveal bench
	$(BIN)/python -m pip install --quiet "trl>=1.16"
	$(BIN)/python benchmarks/against_peers.py
	$(BIN)/python benchmarks/time_to_accuracy.py

clean:
	rm -rf .venv runs site
