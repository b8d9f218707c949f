# Two commands do everything on a fresh machine: `make demo` and `make test`. Neither needs a compiler; `make test-scatter` does.
PYTHON ?= python3
ENV := .venv
BIN := $(ENV)/bin

.PHONY: demo test test-scatter environment clean

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

# Files share what is slow to make (compiled programs, trained models), so that each is run by one process.
test: environment
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

# The extra `scatter`. torch-scatter is compiled against the torch it is used with, so it is built here without isolation and without the
# cache of wheels, where one for another torch may lie; beside the environment rather than in it, so that `make test` stays without.
SCATTER := build/scatter

$(SCATTER)/.ready: $(ENV)/.ready
	@command -v $(firstword $(CXX)) >/dev/null || { echo "torch-scatter is compiled and $(CXX) was not found: install a C++ compiler" \
		"(Debian: apt-get install g++), or name it (make test-scatter CXX=...); nothing else of molequi needs one" >&2; exit 1; }
	rm -rf $(SCATTER)
	@echo "Compiling torch-scatter: about five minutes"
	$(BIN)/pip install --quiet "setuptools>=77"
	CXX="$(CXX)" $(BIN)/pip install --quiet --no-deps --no-build-isolation --no-cache-dir --target $(SCATTER) torch-scatter
	touch $@

test-scatter: $(SCATTER)/.ready
	PYTHONPATH=$(SCATTER) $(BIN)/python -c "import torch_scatter"
	PYTHONPATH=$(SCATTER) $(BIN)/python -m pytest tests/ops/test_segment.py

clean:
	rm -rf $(ENV) build *.egg-info .pytest_cache .hypothesis
