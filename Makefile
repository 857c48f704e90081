# Two commands set everything up on a fresh machine: make demo, make test.
PYTHON ?= python3
BIN := .venv/bin
# Where the demo writes; make demo OUT=elsewhere
OUT ?= demo

.PHONY: demo test test-slow test-pacs lint clean

# The stamp is younger than what decides the environment's content.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/installed
	$(BIN)/medseg-diff demo --out $(OUT)

test: .venv/installed
	$(BIN)/python -m pytest -n 2 -m 'not slow and not pacs'

test-slow: .venv/installed
	$(BIN)/python -m pytest -n 2 -m slow

# Against a real Orthanc, on the loopback interface only. Debian's packages are installed where that
# is possible; elsewhere the tests skip and say what they miss.
APT := DEBIAN_FRONTEND=noninteractive apt-get -y -o Acquire::Retries=0 -o Acquire::http::Timeout=20

test-pacs: .venv/installed
	@command -v Orthanc >/dev/null || [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null \
		|| { $(APT) update && $(APT) install --no-install-recommends orthanc orthanc-dicomweb; } \
		>/dev/null 2>&1 || echo "Orthanc cannot be installed here"
	$(BIN)/python -m pytest -m pacs tests/pacs

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv dist
