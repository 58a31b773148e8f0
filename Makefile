# These need nothing beforehand but Python: make demo, make test, make bench.
# Everything is installed into .venv, at the versions that constraints.txt pins.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable
PACKAGING := setup.py pyproject.toml constraints.txt

.PHONY: demo demo-distributed train-example test test-distributed test-processors test-hostile \
	test-oldest test-defaults test-adapters test-model kernels gpu gpu-test gpu-session gpu-host \
	gpu-install bench bench-full bench-report bench-compare confusion docs lint format clean

demo: $(VENV)/.demo  ## the main job on real embeddings
	$(BIN)/python -P examples/demo.py

demo-distributed: $(VENV)/.distributed  ## three nodes here, one of them killed: the same answer
	$(BIN)/python -P examples/demo_distributed.py

train-example: $(VENV)/.train  ## train a small encoder on the demo's texts: better neighbours
	$(BIN)/python -P examples/train_contrastive.py

# Kernels run interpreted in a process of their own: Triton decides when it is imported.
INTERPRETED := kernel_logic or kernel_memory or kernel_mutants

# In as many processes as there are processors, each with one thread of torch's unless a test sets
# more; what measures memory or time stays in one of them.
PARALLEL := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadgroup

test: $(VENV)/.dev  ## every test
	$(PARALLEL) -m "not ($(INTERPRETED) or ray)"
	TRITON_INTERPRET=1 $(PARALLEL) -m "$(INTERPRETED)"

# One cluster for all of them, whose nodes have a processor each: in one process, beside nothing.
test-distributed: $(VENV)/.dev  ## searches and joins on a small Ray cluster that loses nodes
	OMP_NUM_THREADS=1 $(BIN)/pytest -m ray tests/distributed

test-processors: $(VENV)/.dev  ## the numeric tests with the machine code of other processors
	$(BIN)/python tests/helpers/processors.py $(if $(SHORT),--short)

test-hostile: $(VENV)/.dev  ## kills, damaged files, interrupts, forks: nothing wrong in silence
	$(BIN)/python tests/helpers/hostile/run.py $(if $(SHORT),--short) $(if $(SEED),--seed $(SEED))

# What needs torch, numpy and the tools of testing alone: run on the oldest versions and the newest.
CORE := $(addprefix tests/,cpu functional losses retrieval score) \
	--ignore-glob '*/test_screened_*.py' --ignore-glob '*/test_scanned_*.py'

DEFAULTS := $(addprefix tests/,checks cli cpu diagnose files functional integrations retrieval score)

# The venv made here takes what pip finds of torch 2.8: on Linux from PyPI a CUDA build and its
# libraries, a download of 4 GB. Any other Python with the versions to be tried, `.[test]` and tqdm:
# make test-oldest OLDEST_PYTHON=path/to/python.
OLDEST_VENV := .venv-oldest
OLDEST_PYTHON ?= $(OLDEST_VENV)/bin/python

test-oldest: $(if $(filter $(OLDEST_VENV)/bin/python,$(OLDEST_PYTHON)),$(OLDEST_VENV)/.core)
	$(OLDEST_PYTHON) -m pytest $(CORE)

# Every public function under another default dtype or device; tests make their own as ever.
test-defaults: $(VENV)/.dev  ## the suite under other defaults of torch
	for default in float16 float64 meta; do \
	  DEFAULT=$$default $(PARALLEL) -p under_defaults $(DEFAULTS) || exit 1; done

ADAPTERS := tests/adapters -o asyncio_mode=auto -o asyncio_default_fixture_loop_scope=function

test-adapters: $(VENV)/.adapters  ## the adapters beside the libraries that they stand in for, and their suites
	$(BIN)/pytest $(ADAPTERS) -m "not model"

test-model: $(VENV)/.adapters  ## the example with a real model, a download of 80 MB
	$(INSTALL) ".[model]"
	$(BIN)/pytest $(ADAPTERS) -m model

kernels: $(VENV)/.dev  ## compile every kernel for every architecture; write docs/kernels.md
	PYTHONPATH=tests/helpers $(BIN)/python -P -m ladder.report

# A machine may have a torch and a Triton of its own, with pytest, pytest-timeout, hypothesis and
# expecttest beside them, and no way to PyPI: make gpu GPU_PYTHON=python3.
GPU_PYTHON ?= $(BIN)/python
GPU_PYTEST := $(GPU_PYTHON) -m pytest -W default tests/kernels \
	tests/retrieval/nearest/test_screened_topk.py

gpu: gpu-test  ## on a machine with a GPU: test, sanitize, benchmark
	if command -v compute-sanitizer > /dev/null; then \
		for tool in memcheck racecheck; do \
			compute-sanitizer --tool $$tool --error-exitcode 1 $(GPU_PYTEST) -m kernel_logic || exit 1; \
		done; \
	else echo "compute-sanitizer is not installed: memory and races go unchecked"; fi
	$(GPU_PYTHON) benchmarks/gpu.py

gpu-test: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(VENV)/.dev,gpu-install)
	$(GPU_PYTEST) -m "kernel_logic or kernel_memory or kernel_contract"

# TO=file.json: where it goes; STEPS="matrices compiled": some of its steps.
gpu-session: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(VENV)/.dev,gpu-install)  ## DRY=1: without a GPU
	$(if $(DRY),TRITON_INTERPRET=1 PYTHONPATH=tests/helpers) PYTHONUNBUFFERED=1 $(GPU_PYTHON) \
		benchmarks/gpu_session.py $(if $(DRY),--dry-run) $(STEPS) \
		--to $(or $(TO),out/gpu-session$(if $(DRY),-dry).json)

gpu-host: $(VENV)/.dev  ## what a call on a GPU costs the host; needs no GPU, and nothing else to do
	OMP_NUM_THREADS=1 PYTHONPATH=tests/helpers $(BIN)/python benchmarks/gpu_host.py \
		$(if $(BEFORE),--before $(BEFORE)) $(if $(TO),--to $(TO))

gpu-install:
	$(GPU_PYTHON) -m pip install --quiet --no-deps --no-build-isolation --editable .

# Other embeddings than the 4000 that are shipped: make bench REAL=path/to/matrix.npy. On a GPU:
# make bench DEVICE=cuda.
BENCH := $(BIN)/python benchmarks/report.py
RUN := $(BENCH) run $(if $(REAL),--real "$(REAL)") $(if $(DEVICE),--device "$(DEVICE)")

bench: $(VENV)/.bench  ## measure the quick cases beside their peers, print them, keep the figures
	$(RUN)

bench-full: $(VENV)/.bench  ## measure what `make bench` has not; goes on where it was interrupted
	$(RUN) --full

bench-report: $(VENV)/.bench  ## write the kept figures into README and docs, draw the plots
	$(BENCH) publish $(if $(RESULTS),--json "$(RESULTS)")

bench-compare: $(VENV)/.bench  ## BASE=commit: what got faster or slower since
	@test -n "$(BASE)" || { echo "say what to compare with: make bench-compare BASE=commit"; exit 2; }
	$(BIN)/python benchmarks/compare.py "$(BASE)" $(if $(ONLY),--only "$(ONLY)")

lint: $(VENV)/.dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

confusion: $(VENV)/.dev  ## what the diagnosis finds in cases of known cause
	$(BIN)/python tests/helpers/diagnose_cases.py --write docs/diagnose-confusion.md

# Not --quiet, under which --strict overlooks broken links. The variable silences what
# mkdocs-material prints about its successor.
docs: $(VENV)/.docs  ## the site of docs/ and the docstrings, in out/site; broken links are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/site/mkdocs.yml

clean:
	rm -rf $(VENV) $(OLDEST_VENV) build dist out *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python $(PACKAGING)
	$(INSTALL) ".[viz]"
	touch $@

$(VENV)/.distributed: $(BIN)/python $(PACKAGING)
	$(INSTALL) ".[distributed]"
	touch $@

$(VENV)/.train: $(BIN)/python $(PACKAGING)
	$(INSTALL) ".[retrieval]"
	touch $@

$(VENV)/.dev: $(BIN)/python $(PACKAGING)
	$(INSTALL) ".[gpu,viz,cli,distributed,test,lint]"
	touch $@

$(OLDEST_VENV)/.core: $(PACKAGING)
	$(PYTHON) -m venv $(OLDEST_VENV)
	$(OLDEST_VENV)/bin/python -m pip install --quiet --editable ".[test,retrieval]" \
		"torch==2.8.*" "numpy==1.26.*; python_version < '3.13'"
	touch $@

$(VENV)/.adapters: $(BIN)/python $(PACKAGING)
	$(INSTALL) ".[test,adapters]"
	# What they ask for includes a torchvision, which PyPI has for one torch alone, built for CUDA;
	# their losses need none of it (tests/helpers/bare_packages.py).
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps \
		lightly open_clip_torch
	touch $@

$(VENV)/.docs: $(BIN)/python $(PACKAGING)
	$(INSTALL) ".[docs]"
	touch $@

$(VENV)/.bench: $(BIN)/python $(PACKAGING)
	$(INSTALL) ".[bench,peers]"
	# It asks for versions of numpy and numba from 2023, works with today's, and is checked like
	# every peer; a Python that it does not install on does without.
	-$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps \
		chunkdot llvmlite numba numba-progress psutil
	# Of it the losses alone are loaded, which need no torchvision.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps open_clip_torch
	touch $@
