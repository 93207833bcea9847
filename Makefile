# Every target sets itself up: Python 3.11 or later and make are all that a machine needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := benchmarks/.peers
PEERS_READY := $(PEERS)/.ready
PROTO_OUT ?= .

# ONNX Runtime's wheels send telemetry unless this is set before they are imported.
export ORT_DISABLE_TELEMETRY := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-install test-leak test-cuda lint protos bench bench-peers clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY)  ## train, certify, serve and stream small models: about two minutes, results in demo/text
	$(BIN)/statewise demo

test: lint  ## run all checks, then all tests, a file at a time on each of two cores
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-install: $(READY)  ## install the wheel from a package index into fresh environments: the base, and a server
	$(BIN)/python -m pytest -m install

test-leak: $(READY)  ## serve 10,000 random requests to each of two families: nothing may grow (minutes)
	$(BIN)/python -m pytest -s -m leak

test-cuda: $(READY)  ## run what needs an NVIDIA GPU (REQUIRE_CUDA=1: fail where there is none)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[cuda]'
	$(BIN)/python -m pytest -m cuda -rs tests/cuda

lint: $(READY)  ## check style, types and the imports between packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

protos: $(READY)  ## regenerate statewise/v1 from protos/
	$(BIN)/python -m grpc_tools.protoc -I protos --python_out=$(PROTO_OUT) --pyi_out=$(PROTO_OUT) \
	  --grpc_python_out=$(PROTO_OUT) protos/statewise/v1/*.proto

bench: $(READY)  ## measure the engine against bare loops, PyTorch and itself through gRPC: about ten minutes
	$(BIN)/python -m benchmarks.recurrent
	$(BIN)/python -m benchmarks.transformer

bench-peers: $(READY) $(PEERS_READY)  ## the Transformer beside OpenVINO GenAI and CTranslate2: about half an hour, 2 GB of disk
	$(BIN)/python -m benchmarks.transformer --peers

clean:  ## remove the virtual environments, caches and demo/
	rm -rf $(VENV) $(PEERS) build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Once; again when what is wanted has changed. ensurepip is what Debian keeps in a package of its own.
$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
	  echo "Python 3.11 or later is needed, and there is no $(PYTHON) here." >&2; \
	  echo "On Debian or Ubuntu: apt install python3 python3-venv; elsewhere: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or later is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments." >&2; \
	  echo "On Debian or Ubuntu: apt install python3-venv (with its version, as python3.12-venv, if PYTHON names one)" >&2; \
	  exit 1; }
	@echo "Setting up $(VENV): a minute or more, mostly for PyTorch"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	@touch $@

# torchvision comes with a converter, in a build that need not fit torch's; then transformers cannot be imported.
$(PEERS_READY): benchmarks/peers.txt
	@echo "Setting up $(PEERS): some minutes, about 2 GB"
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --requirement benchmarks/peers.txt
	$(PEERS)/bin/python -m pip uninstall --yes torchvision
	@touch $@
