# Two commands do everything on a fresh machine: `make demo` and `make test`. Neither needs a compiler.
PYTHON ?= python3
ENV := .venv
BIN := $(ENV)/bin

.PHONY: demo test environment clean

environment: $(ENV)/.ready

# torch first, by its exact version, so that nothing else decides which build is taken.
$(ENV)/.ready: pyproject.toml .constraints.txt
	$(PYTHON) -m venv $(ENV)
	$(BIN)/pip install --quiet --constraint .constraints.txt torch
	$(BIN)/pip install --quiet --constraint .constraints.txt --editable ".[test]"
	touch $@

demo: environment
	$(BIN)/python train.py demo
	$(BIN)/molequi md runs/demo/model.safetensors data/ethanol_300K.xyz --ensemble langevin --time 2 --out runs/demo/md
	$(BIN)/molequi audit runs/demo/model.safetensors data/ethanol_300K.xyz
	@echo "Pictures: runs/demo/parity.png, runs/demo/learning_curve.png, runs/demo/md/trajectory.png"

test: environment
	$(BIN)/python -m pytest

clean:
	rm -rf $(ENV) build *.egg-info .pytest_cache .hypothesis
