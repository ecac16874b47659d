# `make` lists what can be done.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.ready
ARGS ?=
# PyTorch's CPU index, if you want to spare the CUDA packages: make setup TORCH_INDEX=ADDRESS
TORCH_INDEX ?=
# Threads that wait actively for each other make small models many times slower on few cores.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help run test test-slow lint setup clean page wheel

help: ## list these targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make the virtual environment with the locked versions

$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) \
		"torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

run: $(STAMP) ## compress the embedded model; pass overrides with ARGS="compressor=max_compression"
	$(BIN)/python run.py $(ARGS)

test: $(STAMP) ## run the quick tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: $(STAMP) ## run the tests that take minutes each
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(STAMP) ## check the style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

page: $(STAMP) ## build the dashboard's page with npm (the first start of the dashboard does it too)
	$(BIN)/python -c "from phase8.watch.server import page; page.build(print)"

wheel: page ## build a wheel that holds the page
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

clean: ## remove the environment and everything that runs wrote
	rm -rf $(VENV) outputs multirun dist build web/node_modules web/out web/.next phase8/watch/server/page
