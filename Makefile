# make demo: set up a virtual environment and run the demonstration.
# make test: set up a virtual environment and run lint and all tests.
# make lint: run only lint.
# make gpu: check and measure everything on a CUDA card, in ten minutes.
#
# They need Python 3.11 or later and a package index. Detectron2 is on no package index. "make test"
# installs the wheel of it that lies in the folder WHEELS; without one, its tests are skipped.

PYTHON ?= python3
VENV ?= .venv
WHEELS ?= $(HOME)/.cache/e3va/wheels
OUTPUT ?= output/demo
GPU_OUTPUT ?= output/gpu
STEPS ?=
WORKERS ?= 2

BIN := $(VENV)/bin
# Without --no-compile pip compiles every file of torch, which takes longer than the tests need.
PIP := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt
DETECTRON2 := $(wildcard $(WHEELS)/detectron2-*.whl)

.PHONY: demo test lint gpu clean

$(BIN)/python:
	@echo "installing into $(VENV); torch is large, so this takes a minute or more"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: setup.py constraints.txt | $(BIN)/python
	$(PIP) --editable '.[plot]'
	touch $@

$(VENV)/.ready-to-test: setup.py constraints.txt | $(BIN)/python
	@echo "Detectron2: $(or $(DETECTRON2),not installed; no wheel of it in $(WHEELS))"
	$(PIP) --editable '.[detectron2,plot,test]' $(DETECTRON2)
	touch $(VENV)/.ready $@

demo: $(VENV)/.ready
	$(BIN)/python benchmarks/demo.py --output $(OUTPUT) $(if $(STEPS),--steps $(STEPS))

# Each worker and each program that a test starts computes with one thread.
test: $(VENV)/.ready-to-test lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --nbmake tests docs/tutorial.ipynb
	@echo "All tests passed. Next: make demo, or README.md for your own images and for Detectron2."

lint: $(VENV)/.ready-to-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

gpu: $(VENV)/.ready-to-test
	$(BIN)/python benchmarks/gpu --output $(GPU_OUTPUT)

clean:
	rm -rf $(VENV) build dist *.egg-info output/demo
