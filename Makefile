# `make help` lists what can be asked for.
VENV   := .venv
SYSTEM_PATH := $(PATH)
PYTHON ?=
PIP_ARGS ?=
PAPER  ?= relp
TIER   ?= cpu
JOBS   ?= 2
SINCE  ?=
PART   ?=
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export PYTHONUNBUFFERED := 1
SITE := book/_build/html/index.html

.PHONY: help book test test-changed test-full repro repro-all rerun run bench data env site open clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12
	@echo "rerun one paper: make rerun PAPER=relp TIER=cpu   (tiers: smoke, cpu, gpu, gpu-dry)"

# Of the names in the loop, the first that starts makes the environment: a version manager's stand-in may be there and refuse.
env: ## the environment of requirements.lock, in .venv (PYTHON=python3.12, PIP_ARGS="...")
	@PATH="$(SYSTEM_PATH)"; for name in $(or $(PYTHON),python3.11 python3.12 python3); do \
	  "$$name" -c "" 2>/dev/null && \
	  exec "$$name" tools/environment.py --venv $(VENV) --pip='$(PIP_ARGS)' $(if $(PYTHON),--anew-for-another-python); \
	done; \
	echo "error: $(or $(PYTHON),Python) does not start here. Install Python 3.11 or 3.12, then type: make env" >&2; exit 1

data: env ## fetch, verify and prepare the raw assets
	@layerbook data

repro: data ## bring every stale result up to date (dvc repro)
	@layerbook sync --check >/dev/null || layerbook sync
	dvc repro

repro-all: data ## run everything again, stale or not
	@layerbook sync
	dvc repro -f

rerun: data ## one paper at one tier: make rerun PAPER=relp TIER=cpu
	layerbook rerun $(PAPER) --tier $(TIER)
	@if [ "$(TIER)" = cpu ]; then dvc repro -q -s digests && dvc commit -q -f $(PAPER) && dvc repro -q report; fi

run: data ## every stale paper, JOBS at once on warm kernels: make run JOBS=2
	@layerbook sync
	layerbook run -j $(JOBS)

bench: data ## time the machinery against plain baselines, what is outdated of it: make bench PART="quantizers book"
	python -m bench.machinery $(PART)

site: env
	layerbook build

book: repro ## everything: environment, data, results, site
	@$(MAKE) --no-print-directory site
	@echo "the book is built: file://$(CURDIR)/$(SITE)   (make open)"

open: ## open the built book in a browser
	@test -f $(SITE) || { echo "no book yet: run 'make book'"; exit 1; }
	@python3 -m webbrowser "file://$(CURDIR)/$(SITE)"

test: data ## all that continuous integration runs
	bash tests/run.sh

test-changed: data ## what a change touches, and two sentinels: make test-changed SINCE=origin/main
	bash tests/run.sh --changed $(SINCE)

test-full: data ## re-execute every paper at its own tier and compare values; every page on other fonts
	@for card in $$(grep -L '^draft:' notebooks/*.yaml); do layerbook rerun $$(basename $$card .yaml) --dry --expect-same || exit 1; done
	LAYERBOOK_EXHAUSTIVE=1 python -m pytest -q tests/test_browser_fonts.py

clean: ## remove what can be made again, but not data and results
	rm -rf book/_build book/papers book/_generated build/failed .pytest_cache .ruff_cache
