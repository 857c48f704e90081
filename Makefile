# Two commands set everything up on a fresh machine: make demo, make test.
PYTHON ?= python3
BIN := .venv/bin
# Where the demo writes; make demo OUT=elsewhere
OUT ?= demo

.PHONY: demo test test-slow lint clean

# The stamp is younger than what decides the environment's content.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/installed
	$(BIN)/medseg-diff demo --out $(OUT)

test: .venv/installed
	$(BIN)/python -m pytest -n 2 -m 'not slow'

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv dist
