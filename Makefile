# `make demo` and `make test` are all a new user needs; each installs what it uses.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
RUN     = $(BIN)/python

.PHONY: demo test soak gpu-check lint clean

$(VENV)/.installed: requirements.txt requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: PlantSwin needs Python 3.11 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@

demo: $(VENV)/.installed  ## The whole tour on drawn leaves: draw, prepare, train, score, show.
	$(RUN) -m tools sample --dst demo/plant_dataset
	$(RUN) process_dataset.py --src demo/plant_dataset --dst demo/dataset
	$(RUN) main.py --cfg configs/sample.yaml --data-path demo/dataset --output demo/output
	$(RUN) test.py --resume demo/output/sample/default/best.pth --data-path demo/dataset
	$(RUN) -m tools baseline --cfg configs/sample.yaml --data-path demo/dataset
	$(RUN) visual.py --resume demo/output/sample/default/best.pth --data-path demo/dataset --examples 6

test: $(VENV)/.installed  ## Every test, on a CPU, without a network.
	$(RUN) -m pytest

soak: $(VENV)/.installed  ## Kills, signals, damage, full disks, full size and many models; docs/reliability.md and docs/models.md have the tables.
	$(RUN) -m pytest --soak -rP tests/reliability tests/models tests/tools/train tests/tools/bench/test_gpu.py tests/commands/test_label_sets.py tests/commands/test_renamed_labels.py tests/commands/test_study.py

gpu-check: $(VENV)/.installed  ## Speed, memory and exact resume on this machine's GPUs, on drawn leaves; under 8 minutes.
	$(RUN) -m tools bench gpu

lint: $(VENV)/.installed  ## Style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo
