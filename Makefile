# make demo: set up a virtual environment and run the demonstration.
# make test: set up a virtual environment and run lint and all tests.
# make lint: run only lint.
#
# Both need Python 3.11 or later and a package index. Detectron2 is on no package index. "make test"
# installs the wheel of it that lies in the folder WHEELS; without one, its tests are skipped.

PYTHON ?= python3
VENV ?= .venv
WHEELS ?= $(HOME)/.cache/e3va/wheels
OUTPUT ?= output/demo
STEPS ?= 220
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo test lint clean

$(VENV)/.ready: setup.py constraints.txt
	@echo "installing into $(VENV); torch is large, so this takes a minute or more"
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[plot]'
	touch $@

$(VENV)/.ready-to-test: $(VENV)/.ready
	$(PIP) --editable '.[detectron2,plot,test]'
	@if ls $(WHEELS)/detectron2-*.whl >/dev/null 2>&1; then \
		echo "installing Detectron2 from $(WHEELS)"; $(PIP) $(WHEELS)/detectron2-*.whl; \
	else \
		echo "Detectron2 is not installed: no wheel of it in $(WHEELS)"; \
	fi
	touch $@

demo: $(VENV)/.ready
	$(BIN)/python benchmarks/demo.py --output $(OUTPUT) --steps $(STEPS)

# Each worker and each program that a test starts computes with one thread.
test: $(VENV)/.ready-to-test lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
	@echo "All tests passed. Next: make demo, or README.md for your own images and for Detectron2."

lint: $(VENV)/.ready-to-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist *.egg-info output/demo
