# One virtual environment, made on first use from the constraints that the tests run with.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: plan test check docs clean

plan: .venv/installed
	$(BIN)/bsmodel plan resnet50

test: .venv/installed # on every processor, one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: .venv/installed # the pages of docs/ as a site, in build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --config-file .mkdocs.yml

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[models,test,docs]'
	touch $@

clean:
	rm -rf .venv build
