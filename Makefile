# Commands to know: `make demo`, `make check`, `make test`. All install into .venv first.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := d3hr_ray jobs tests

.PHONY: help install demo check test chaos results docs-check lint format clean

help:  ## what each target does
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

# Compiled once here: where PYTHONDONTWRITEBYTECODE is set, as in many containers, each process would compile torch anew,
# which costs every worker 15 seconds.
install: .venv/.installed  ## make .venv with pinned versions (uv if present, else pip brings it)

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 1; }
	@echo "installing into .venv: 7 GB, 1 to 2 minutes"
	@if command -v uv >/dev/null; then \
		test -x $(BIN)/python || uv venv --quiet --python $(PYTHON) .venv; \
		uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[dev]'; \
	else \
		test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
			{ echo "cannot make .venv; on Debian: apt-get install python3-venv"; exit 1; }; \
		$(BIN)/python -m pip install --quiet uv && \
		$(BIN)/python -m uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[dev]'; \
	fi
	@touch $@

demo: install  ## distil the embedded digits and train on them: the whole pipeline on a laptop, in 2 minutes
	$(BIN)/python jobs/distill.py --preset digits --solver adams --ipc 1 10 --out runs/demo
	$(BIN)/python jobs/evaluate.py --distilled runs/demo --arch convnet-d3-w16 --repeats 2 --workers 0

check: install  ## the quick tests, for minutes of work: what takes more than 5 seconds is left to `make test`
	$(BIN)/python -m pytest -m "not slow and not gpu and not chaos and not docs" -n 2 --dist loadfile --no-loadscope-reorder

test: install  ## all tests but those that need a GPU or take minutes (`make chaos`)
	$(BIN)/python -m pytest -m "not gpu and not chaos and not docs" -n 2 --dist loadfile --no-loadscope-reorder

chaos: install  ## faults that take minutes: drivers, nodes and jobs killed, clusters that grow
	$(BIN)/python -m pytest -m chaos --timeout 1800

results: install  ## docs/results.md from the records in results/
	$(BIN)/python -m d3hr_ray.results

docs-check: install  ## run the commands of README and docs on small data, about 25 minutes
	$(BIN)/python -m pytest -m docs --timeout 1800 tests/test_docs.py tests/test_own_data.py

lint: install  ## ruff check and format check, mypy
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: install  ## let ruff mend what it can
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

clean:  ## remove .venv and caches; runs/ stays
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache *.egg-info
