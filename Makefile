# make demo: set up a virtual environment and run the demonstration, from a package index alone.
# make test: set up a virtual environment and pass lint and tests.
#
# Detectron2 is on no package index. If the folder WHEELS holds a wheel of it, "make test" installs
# it too; without it, its tests are skipped.

PYTHON ?= python3
VENV ?= .venv
WHEELS ?= $(HOME)/.cache/e3va/wheels
OUTPUT ?= output/demo
STEPS ?= 220

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

test: $(VENV)/.ready-to-test lint
	$(BIN)/python -m pytest
	@echo "All is well. Next: make demo, then e3va train --help for your own images; with"
	@echo "Detectron2: projects/E3VA/README.md"

lint: $(VENV)/.ready-to-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build dist *.egg-info output/demo
