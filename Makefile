# make demo: set up a virtual environment and run the main job.
# make test: set up a virtual environment and pass lint and tests.
#
# Detectron2 is on no package index. If the folder WHEELS holds a wheel of it, it is installed too;
# without it, its tests are skipped and the demonstration is the core's alone.

PYTHON ?= python3
VENV ?= .venv
WHEELS ?= $(HOME)/.cache/e3va/wheels
OUTPUT ?= output/demo
STEPS ?= 150

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo test lint clean

$(VENV)/.ready: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[detectron2,plot,test]'
	@if ls $(WHEELS)/detectron2-*.whl >/dev/null 2>&1; then \
		echo "installing Detectron2 from $(WHEELS)"; $(PIP) $(WHEELS)/detectron2-*.whl; \
	else \
		echo "Detectron2 is not installed: no wheel of it in $(WHEELS)"; \
	fi
	touch $@

demo: $(VENV)/.ready
	$(BIN)/python benchmarks/demo.py --output $(OUTPUT) --steps $(STEPS)

test: $(VENV)/.ready lint
	$(BIN)/python -m pytest

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build dist *.egg-info output/demo
