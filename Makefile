# Every target makes the virtual environment it needs; nothing is installed outside of them.

PYTHON ?= python3
VENV := .venv
VENV_FRAMEWORKS := .venv-frameworks
VENV_CUDA := .venv-cuda
VENV_GPU = .venv-gpu-cuda$(CUDA)
VENV_NOTEBOOKS := .venv-notebooks
VENV_DOCS := .venv-docs
CUDA ?= 12

.DELETE_ON_ERROR:
.PHONY: help demo test test-frameworks test-cuda-host bench test-gpu bench-gpu experiment nightly notebooks notebooks-check docs lint format clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18
	@echo
	@echo "In brackets: minutes on two cores once the environment is there, and what that takes on disk where it is one of its own"

demo: $(VENV)/ready ## the loss and its gradient on a photograph, then ports judged right and wrong (1 min; 0.8 GB)
	@$(VENV)/bin/python examples/demo.py

test: $(VENV)/ready ## all tests that need no framework (7 to 8 min; the same 0.8 GB)
	$(VENV)/bin/python -m pytest -n 2 --ignore=tests/frameworks --ignore=tests/cuda_host

test-frameworks: $(VENV_FRAMEWORKS)/ready ## tests with PyTorch, JAX and TensorFlow, in an environment of their own (5 min; 3.4 GB)
	$(VENV_FRAMEWORKS)/bin/python -m pytest -n 2 tests/frameworks tests/test_documents.py

test-cuda-host: ## the GPU kernels: run on the CPU, and compiled for three GPUs (5 min; 1.2 GB)
	@command -v g++ > /dev/null || { echo "skipped: test-cuda-host needs g++, and there is none here. On Debian and Ubuntu: apt install g++"; exit 0; }; \
	$(MAKE_COMMAND) --no-print-directory $(VENV_CUDA)/ready && \
	LALREF_NVRTC=needed $(VENV_CUDA)/bin/python -m pytest -n 2 tests/cuda_host && \
	LALREF_TEST_ENGINES=cuda $(VENV_CUDA)/bin/python -m pytest -n 2 -k cuda tests/test_array.py tests/test_combine.py tests/test_promises_*.py tests/test_tiny_losses.py

experiment: $(VENV_FRAMEWORKS)/ready ## digits over photographs: this loss against cross-entropy, from where it was left; RESULTS=folder does all of it anew (half an hour; 3.4 GB)
	$(VENV_FRAMEWORKS)/bin/python -m experiments.digits $(if $(RESULTS),--results $(RESULTS))

nightly: $(VENV)/ready $(VENV_FRAMEWORKS)/ready ## what takes longer: golden values, 10,000 honest runs, the kill matrix, the oracle's figures, the experiment (not timed as a whole, the experiment half an hour; the same 0.8 and 3.4 GB)
	$(VENV)/bin/lalref golden check
	$(VENV)/bin/lalref oracle false-alarms --runs 10000
	$(VENV_FRAMEWORKS)/bin/lalref oracle report --folder out/oracle
	LALREF_NIGHTLY=1 $(VENV)/bin/python -m pytest -n 2 tests/test_diagnose.py
	$(MAKE) experiment RESULTS=out/experiment
	PYTHONPATH=.:tests $(VENV_FRAMEWORKS)/bin/python -m blind_ports.score
	PYTHONPATH=.:tests $(VENV_FRAMEWORKS)/bin/python -m blind_ports.described.score
	PYTHONPATH=.:tests $(VENV_FRAMEWORKS)/bin/python -m oracle_figures units cost files
	@command -v g++ > /dev/null || { echo "skipped: the kernels in more orders of threads need g++, and there is none here"; exit 0; }; \
	$(MAKE_COMMAND) --no-print-directory $(VENV_CUDA)/ready && \
	LALREF_NIGHTLY=1 $(VENV_CUDA)/bin/python -m pytest -n 2 tests/cuda_host/test_orders.py tests/cuda_host/test_stage3.py

bench: $(VENV_FRAMEWORKS)/ready ## time the engines beside PyTorch and JAX, each checked first; QUICK=--quick for a first look (6 min; the same 3.4 GB)
	@mkdir -p out
	$(VENV_FRAMEWORKS)/bin/lalref bench $(QUICK) --json out/bench.json --picture out/bench.png

test-gpu: $(VENV_GPU)/ready ## the same cases on a GPU (not timed; several GB); CUDA=13 for newer drivers
	$(VENV_GPU)/bin/python -m pytest tests/gpu tests/test_kernels.py

bench-gpu: $(VENV_GPU)/ready ## measure the kernels on a GPU and write reports/gpu.json (not timed; the same)
	$(VENV_GPU)/bin/python -m lalref.bench.gpu

notebooks: $(VENV_NOTEBOOKS)/ready ## run the notebooks and write them with their outputs (3 min; 2 GB)
	$(VENV_NOTEBOOKS)/bin/python notebooks/build.py $(NAMES)

notebooks-check: $(VENV_NOTEBOOKS)/ready ## run the notebooks again and tell which is stale (3 min; the same 2 GB)
	$(VENV_NOTEBOOKS)/bin/python -m pytest -q tests/test_notebooks.py
	$(VENV_NOTEBOOKS)/bin/python notebooks/build.py --check $(NAMES)

docs: $(VENV_DOCS)/ready ## these pages as a site, into docs/_build/html (half a minute; 0.8 GB)
	$(VENV_DOCS)/bin/python -m sphinx -W --keep-going -n -q -b html docs docs/_build/html
	$(VENV_DOCS)/bin/python docs/check_site.py docs/_build/html
	@echo "docs/_build/html/index.html"

lint: $(VENV)/ready ## style, format and types (some seconds; the same 0.8 GB as test)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/ready ## put the code into the format that lint asks for
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean: ## remove the environments and everything that was made
	rm -rf $(VENV) $(VENV_FRAMEWORKS) $(VENV_CUDA) .venv-gpu* $(VENV_NOTEBOOKS) $(VENV_DOCS) out docs/_build docs/notebooks build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# An environment that was made by another Python than PYTHON=... names is made again.
by-python = $(shell "$(1)" -c 'import sys; print(sys.base_exec_prefix.replace(" ", "_"), sys.version.split()[0], sep="=")' 2> /dev/null)
by-another-python = $(if $(filter file,$(origin PYTHON)),,$(if $(wildcard $(1)/ready),$(if $(filter $(call by-python,$(PYTHON)),$(call by-python,$(1)/bin/python)),,again)))
.PHONY: again
again:

# The file "ready" is the last thing written: an environment without it is incomplete and is made again.

$(VENV)/ready: pyproject.toml constraints.txt $(call by-another-python,$(VENV))
	$(make-venv)
	@echo "Installing what lalref and its tests need into $(VENV) (once, about a minute) ..."
	@$(pip-install) --group test --group lint --editable .
	@touch $@

$(VENV_FRAMEWORKS)/ready: pyproject.toml constraints.txt $(call by-another-python,$(VENV_FRAMEWORKS))
	$(make-venv)
	@echo "Installing lalref, PyTorch, JAX and TensorFlow into $(VENV_FRAMEWORKS) (once, some minutes, 3 GB) ..."
	@$(pip-install) --group test --group frameworks --editable .
	@touch $@

$(VENV_CUDA)/ready: pyproject.toml constraints.txt $(call by-another-python,$(VENV_CUDA))
	$(make-venv)
	@echo "Installing lalref, CuPy and NVIDIA's compiler library into $(VENV_CUDA) (once, some minutes, 1.2 GB) ..."
	@$(pip-install) --group test --group cuda-host --editable .
	@touch $@

$(VENV_NOTEBOOKS)/ready: pyproject.toml constraints.txt $(call by-another-python,$(VENV_NOTEBOOKS))
	$(make-venv)
	@echo "Installing lalref, Jupyter's kernel, PyTorch and JAX into $(VENV_NOTEBOOKS) (once, some minutes, 1.5 GB) ..."
	@$(pip-install) --group test --group notebooks --editable .
	@touch $@

$(VENV_GPU)/ready: pyproject.toml constraints.txt $(call by-another-python,$(VENV_GPU))
	$(make-venv)
	@echo "Installing lalref, CuPy for CUDA $(CUDA) and PyTorch into $(VENV_GPU) (once, some minutes, several GB) ..."
	@$(pip-install) --group test --editable ".[cuda$(CUDA),torch]"
	@touch $@

$(VENV_DOCS)/ready: pyproject.toml constraints.txt $(call by-another-python,$(VENV_DOCS))
	$(make-venv)
	@echo "Installing lalref and Sphinx into $(VENV_DOCS) (once, about a minute) ..."
	@$(pip-install) --editable ".[docs]"
	@touch $@

pip-install = $(@D)/bin/python -m pip install --quiet --disable-pip-version-check \
	--constraint constraints.txt --build-constraint constraints.txt

# Dependency groups need pip 25.1 or later, so pip itself comes first. It is too old to be told of --build-constraint.
define make-venv
@command -v "$(PYTHON)" > /dev/null || { \
	echo "lalref needs Python 3.11 or newer, and there is no '$(PYTHON)' here."; \
	echo "Install one, or name yours: make $(MAKECMDGOALS) PYTHON=/path/to/python3"; exit 1; }
@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo "lalref needs Python 3.11 or newer, and '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1)."; \
	echo "Name a newer one: make $(MAKECMDGOALS) PYTHON=/path/to/python3"; exit 1; }
@"$(PYTHON)" -c 'import ensurepip, venv' 2> /dev/null || { \
	echo "'$(PYTHON)' comes without the modules venv and ensurepip. On Debian and Ubuntu: apt install python3-venv"; \
	echo "Or name another Python: make $(MAKECMDGOALS) PYTHON=/path/to/python3"; exit 1; }
@"$(PYTHON)" -m venv $(if $(filter again,$^),--clear )$(@D)
@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --constraint constraints.txt pip
endef
