# `make demo` and `make test` do everything on a fresh machine; neither needs a compiler (`make test-scatter` does).
# `make check` is the quick look before a commit, `make docs` builds the documentation. The page docs/contributing.md explains them.
PYTHON ?= python3
ENV := .venv
BIN := $(ENV)/bin

.PHONY: demo test check lint types quick docs reliability test-scatter check-lower-bounds environment clean

environment: $(ENV)/.ready

# torch first, by its exact version, so that nothing else decides which build is taken.
$(ENV)/.ready: pyproject.toml .constraints.txt
	$(PYTHON) -m venv $(ENV)
	$(BIN)/pip install --quiet --constraint .constraints.txt torch
	$(BIN)/pip install --quiet --constraint .constraints.txt --editable ".[test]"
	touch $@

$(ENV)/.dev: $(ENV)/.ready
	$(BIN)/pip install --quiet --constraint .constraints.txt --editable ".[dev]"
	touch $@

# The pages use published weights, which are files in wheels of other packages; nothing of these packages is run.
$(ENV)/.docs: $(ENV)/.ready
	$(BIN)/pip install --quiet --constraint .constraints.txt --editable ".[docs]"
	$(BIN)/pip install --quiet --no-deps sevenn==0.13.0 so3krates-torch==0.2.1
	touch $@

demo: environment
	$(BIN)/python train.py demo
	$(BIN)/molequi md runs/demo/model.safetensors data/ethanol_300K.xyz --ensemble langevin --time 2 --out runs/demo/md
	$(BIN)/molequi audit runs/demo/model.safetensors data/ethanol_300K.xyz
	@echo "Report: runs/demo/report.html; pictures: runs/demo/parity.png, runs/demo/learning_curve.png, runs/demo/md/trajectory.png"

# Tests of one file share what is slow to make (compiled programs, trained models), so one process runs each file. The order is that of
# tests/conftest.py: pytest-xdist would begin with the files of many tests, and end with one that takes minutes.
PYTEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 25 --durations-min 5 --junitxml build/tests.xml

test: environment
	$(PYTEST)

# The tests of single functions and files: no training, nothing compiled.
QUICK := tests/ops tests/nn tests/spectral tests/data tests/util tests/test_graph.py tests/test_heads.py tests/test_symmetry.py tests/test_layers.py \
	tests/test_structure.py tests/test_packaging.py tests/test_losses.py tests/test_checkpoint.py tests/test_mutations.py \
	tests/test_neighbors.py tests/test_model.py tests/test_shapes.py tests/test_docs.py tests/training/test_schedule.py \
	tests/inference/test_metrics.py tests/config/test_schema.py tests/readers/test_arrays.py tests/readers/test_ase.py \
	tests/audit/test_groups.py tests/audit/test_report.py

check: lint types quick

lint: $(ENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(ENV)/.dev
	$(BIN)/mypy

quick: environment
	$(PYTEST) $(QUICK)

# Warnings are errors. The pages are executed; results are kept in build/, so that an unchanged page does not run again.
docs: $(ENV)/.docs
	$(BIN)/sphinx-build --fail-on-warning --keep-going --doctree-dir build/doctrees docs build/docs
	@echo "Open build/docs/index.html"

# The extra `scatter`. torch-scatter is compiled against the torch that it is used with, so it is built here without isolation and
# without pip's cache, which may hold one for another torch. It is kept outside the environment, so that `make test` runs without it.
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

# The quick tests with the lowest versions that pyproject.toml allows (torch: as in .constraints.txt), in an environment of their own.
# A deprecation in an old package is shown and is no error here.
LOWEST := build/lowest
LOWEST_TOO := tests/training/test_classes.py tests/readers/test_pyg.py tests/readers/test_points.py tests/interfaces/test_ase.py

check-lower-bounds: environment
	mkdir -p build
	$(BIN)/python tests/lower_bounds.py > $(LOWEST).txt
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --constraint $(LOWEST).txt torch
	$(LOWEST)/bin/pip install --quiet --constraint $(LOWEST).txt ".[points,pyg]" beartype hypothesis pytest pytest-xdist
	$(LOWEST)/bin/python -m pytest -W default --numprocesses logical --maxprocesses 4 --dist loadfile $(QUICK) $(LOWEST_TOO)

# One table of figures: symmetries, derivatives, conserved energy, files, kills, fuzzing. About an hour; build/reliability.json has the
# numbers. `make reliability LENGTH=--quick` takes minutes.
reliability: environment
	$(BIN)/python -m tests.reliability $(LENGTH)

clean:
	rm -rf $(ENV) build *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
