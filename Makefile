# The whole workflow. `make demo` and `make test` install what they need first.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.DEFAULT_GOAL := help
.PHONY: help install demo check format test test-deploy test-deploy-quick deploy-demo test-flower bench bench-quick study savings rounds docs

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-18s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## make .venv with everything for development

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "kdfed needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "installing kdfed into .venv (once; torch is large, so this takes some minutes)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-warn-script-location -e '.[dev]'
	@touch $@

demo: $(INSTALLED)  ## the main job on real images, through Flower's runtime
	$(BIN)/kdfed run simulations/quickstart.yaml --engine flower --nodes 2 --out runs/quickstart --overwrite

check: $(INSTALLED)  ## format, lint, types, fast tests, README examples
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -m "not sim and not slow and not deploy" -n auto --maxprocesses 4 --dist loadgroup

format: $(INSTALLED)  ## format the code, and mend what the linter can mend
	$(BIN)/ruff check --fix-only -q .
	$(BIN)/ruff format .

test: $(INSTALLED)  ## every test but those of real devices, on the cores that are there
	$(BIN)/python -m pytest -q -m "not deploy" -n auto --maxprocesses 4 --dist loadgroup

test-deploy: $(INSTALLED)  ## the tests that start a real SuperLink and real SuperNodes, one after the other
	$(BIN)/python -m pytest -q -m deploy -n 0

test-deploy-quick: $(INSTALLED)  ## the same without those that are slow: faults, and devices behind slow links
	$(BIN)/python -m pytest -q -m "deploy and not slow" -n 0

test-flower: $(INSTALLED)  ## what touches Flower, on the oldest and newest releases that are allowed
	$(BIN)/python tests/releases.py

deploy-demo: $(INSTALLED)  ## a SuperLink and three devices on this machine, with TLS and keys
	$(BIN)/kdfed deploy demo --out runs/devices

bench: $(INSTALLED)  ## a round beside a bare PyTorch loop and other frameworks (long)
	$(BIN)/python tests/bench/bench.py --out runs/bench

bench-quick: $(INSTALLED)  ## the same with fewer cases
	$(BIN)/python tests/bench/bench.py --quick --out runs/bench-quick

study: $(INSTALLED)  ## compare KD methods between pre-trained models
	$(BIN)/kdfed study simulations/study-digits.yaml --out runs/study-digits
	$(BIN)/kdfed study simulations/study-mnist5k.yaml --out runs/study-mnist5k

rounds: $(INSTALLED)  ## the claim's Dirichlet 0.1 cells with three seeds (long)
	$(BIN)/kdfed matrix simulations/matrix-rounds.yaml --out runs/rounds

SAVINGS := quickstart uniform pathological hundreds diabetes

savings: $(INSTALLED)  ## run the shipped experiments, count them anew, then one table of what they saved
	for name in $(SAVINGS); do \
		$(BIN)/kdfed run simulations/$$name.yaml --engine inprocess --out runs/savings/$$name --overwrite || exit 1; \
	done
	$(BIN)/python tests/recount.py $(SAVINGS:%=runs/savings/%)
	$(BIN)/python -m simulations.savings $(SAVINGS:%=runs/savings/%)

docs: $(INSTALLED)  ## the site, in site/
	$(BIN)/python docs/generate_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "open site/index.html"
