# The whole of the daily work. Each target does the set-up it needs; a second set-up does nothing.

PYTHON ?=
BIN := .venv/bin

# What a processor without AVX-512 computes with; see CONTRIBUTING.md.
AS_AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
NUMERIC := tests/models tests/adapt tests/train/test_loss.py tests/train/test_sharing.py \
	tests/train/test_optim.py tests/train/test_checkpoint.py tests/deliver/test_export.py \
	tests/deliver/test_merge.py

# What one process of a test has compiled, the next need not.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo test avx2 slow gpu check docs bench clean

setup: .venv/ready

.venv/ready: pyproject.toml requirements.txt
	@python=$$(PYTHON="$(PYTHON)" .ci/find_python) && $$python -m venv .venv
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

demo: setup
	$(BIN)/foveal demo --out runs/demo

# Three on two processors: now and then one waits for processes of its own.
test: setup
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --quiet -m "not slow"

avx2: setup
	$(AS_AVX2) $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --quiet -m "not slow" $(NUMERIC)

# Beside the environment, not in it: where it can be imported, transformers reads images with it.
.torchvision/ready: .venv/ready
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .torchvision torchvision==0.29.1
	touch $@

slow: setup .torchvision/ready
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
