# These need nothing beforehand but Python: make demo, make test, make bench.
# Everything is installed into .venv, at the versions that constraints.txt pins.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable
PACKAGING := setup.py pyproject.toml constraints.txt

.PHONY: demo test test-faces test-model kernels gpu bench bench-report confusion lint format clean

demo: $(VENV)/.demo  ## the main job on real embeddings
	$(BIN)/python -P examples/demo.py

# Kernels run interpreted in a process of their own: Triton decides when it is imported.
INTERPRETED := kernel_logic or kernel_memory or kernel_mutants

test: $(VENV)/.dev  ## every test
	$(BIN)/pytest -m "not ($(INTERPRETED))"
	TRITON_INTERPRET=1 $(BIN)/pytest -m "$(INTERPRETED)"

FACES := tests/faces -o asyncio_mode=auto -o asyncio_default_fixture_loop_scope=function

test-faces: $(VENV)/.faces  ## the faces of other libraries beside the libraries, and their suites
	$(BIN)/pytest $(FACES) -m "not model"

test-model: $(VENV)/.faces  ## the example with a real model, a download of 80 MB
	$(INSTALL) ".[model]"
	$(BIN)/pytest $(FACES) -m model

kernels: $(VENV)/.dev  ## compile every kernel for every architecture; write docs/kernels.md
	PYTHONPATH=tests $(BIN)/python -P -m ladder.report

gpu: $(VENV)/.dev  ## on a machine with a GPU: test, sanitize, benchmark
	$(BIN)/pytest -m "kernel_logic or kernel_memory or kernel_contract"
	if command -v compute-sanitizer > /dev/null; then \
		compute-sanitizer --tool memcheck --error-exitcode 1 $(BIN)/pytest -m kernel_logic && \
		compute-sanitizer --tool racecheck --error-exitcode 1 $(BIN)/pytest -m kernel_logic; \
	else echo "compute-sanitizer is not installed: memory and races go unchecked"; fi
	$(BIN)/python -P benchmarks/gpu.py

bench: $(VENV)/.bench  ## measure every case beside its peers, print them, keep the figures
	$(BIN)/python benchmarks/report.py run

bench-report: $(VENV)/.bench  ## write the kept figures into README and docs
	$(BIN)/python benchmarks/report.py publish

lint: $(VENV)/.dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

confusion: $(VENV)/.dev  ## what the diagnosis finds in cases of known cause
	$(BIN)/python tests/diagnose_cases.py --write docs/diagnose-confusion.md

clean:
	rm -rf $(VENV) build dist out *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python $(PACKAGING)
	$(INSTALL) ".[viz]"
	touch $@

$(VENV)/.dev: $(BIN)/python $(PACKAGING)
	$(INSTALL) ".[gpu,viz,cli,test,lint]"
	touch $@

$(VENV)/.faces: $(BIN)/python $(PACKAGING)
	$(INSTALL) ".[test,faces]"
	touch $@

$(VENV)/.bench: $(BIN)/python $(PACKAGING)
	$(INSTALL) ".[bench,peers]"
	touch $@
