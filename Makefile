# What a clone is for. `make` alone lists it.
#
#   PYTHON     the Python, 3.11 to 3.13, that .venv is made with
#   PIP_ARGS   options for pip, such as --index-url https://download.pytorch.org/whl/cpu
#   ARGS       more flags for `make serve` and `make demo`, more options for pytest

PYTHON ?= python3
PIP_ARGS ?=
ARGS ?=
BIN := .venv/bin
NATIVE := $(wildcard setup.py) $(shell find service -name '*.cpp' -o -name '*.h')

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo serve test check lint proto sync docs clean

help: ## list what there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/installed ## make .venv and install gruve with the versions in constraints.txt

demo: install ## start a server and watch it write a tune and a text
	@$(BIN)/gruve demo $(ARGS)

serve: install ## serve the models until Ctrl-C
	@$(BIN)/gruve serve $(ARGS)

# Tests of one file stay in one process, because they share servers.
test: install ## the tests, some minutes on two cores
	$(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile $(ARGS)

check: install lint ## lint, types, the documentation and the longer proofs
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: install ## style and types alone
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

proto: install ## generate the stubs in service/gruve/v1 from proto/
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=service --pyi_out=service proto/gruve/v1/*.proto
	$(BIN)/python -m grpc_tools.protoc -Iproto --grpc_python_out=service $$(grep -l '^service ' proto/gruve/v1/*.proto)

sync: install ## generate the sync client from the async one
	$(BIN)/python tools/unasync.py

docs: install ## build the documentation into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean: ## remove .venv and whatever else was made here; models and runs stay
	rm -rf .venv build dist demo .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find service tests -name __pycache__ -prune -exec rm -rf {} +
	find service -name '*.egg-info' -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 11) <= v < (3, 14) or sys.exit("gruve needs Python 3.11 to 3.13; $(PYTHON) is %d.%d. Name another: make install PYTHON=..." % v[:2])'
	$(PYTHON) -m venv .venv

.venv/installed: $(BIN)/python pyproject.toml constraints.txt $(NATIVE)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev,docs]'
	@touch $@
