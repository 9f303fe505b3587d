.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install quickstart quickstart-dino test test-long lint notebooks bench-peer

VENV := .venv
PEER := .venv-peer
BIN := $(VENV)/bin/python
STAMP := $(VENV)/.installed$(addprefix -,$(EXTRA))
comma := ,
EXTRAS := dev$(addprefix $(comma),$(EXTRA))
FIGURE := runs/digits/figures/quickstart.png
SEEN := runs/dino_digits/figures/seen.png
PYTHON ?= python3
# One process a core; a file stays in one process, so that its fixtures are made once.
PARALLEL := -n auto --dist loadfile
CANDIDATES = $(PYTHON) $(if $(filter file,$(origin PYTHON)),python3.13 python3.12 python3.11 python3.14)

help:
	@echo 'make install [EXTRA=tpu|cuda]  make .venv with everything in it (PYTHON=... picks the Python);'
	@echo '                               other extras: fast, gcs, sweep, demo; several: EXTRA=tpu,gcs'
	@echo 'make quickstart                train a ViT on real digits, classify eight, draw the figure'
	@echo 'make quickstart-dino           train DINO on the same digits without labels, draw what it sees'
	@echo 'make test                      the quick tests'
	@echo 'make test-long                 all tests, those that take minutes too'
	@echo 'make lint                      ruff check, ruff format --check, import-linter'
	@echo 'make notebooks                 make experiments/notebooks/*.ipynb from the .py beside them'
	@echo 'make bench-peer                make .venv-peer, timm in torch, for tools.benchmark --against'

install: $(STAMP)

# Every extra has its own stamp, and all leave the plain one: the other targets ask for that.
$(STAMP): requirements.txt pyproject.toml
	@$(call make_venv,$(VENV))
	$(BIN) -m pip install -e '.[$(EXTRAS)]'
	@touch $(VENV)/.installed $@
	@echo 'installed; next: make quickstart, or . $(VENV)/bin/activate'

ifneq ($(STAMP),$(VENV)/.installed)
$(VENV)/.installed: $(STAMP) ;
endif

# Training saves as it goes and is resumed by the same command, so a half-done quickstart goes on.
quickstart: $(FIGURE)
	@echo 'done: $(FIGURE); to start afresh: rm -r runs/digits'

$(FIGURE): | $(VENV)/.installed
	$(BIN) -m vit_jax.train --config=configs/digits.py --workdir=runs/digits
	$(BIN) -m vit_jax.tools.predict --workdir=runs/digits --output=$@ \
	  test:0 test:1 test:2 test:3 test:4 test:5 test:6 test:7

quickstart-dino: $(SEEN)
	@echo 'done: $(SEEN); to start afresh: rm -r runs/dino_digits'

$(SEEN): | $(VENV)/.installed
	$(BIN) -m vit_jax.train --config=configs/dino_digits.py --workdir=runs/dino_digits
	$(BIN) -m vit_jax.tools.attend --workdir=runs/dino_digits --output=$@ \
	  test:0 test:1 test:2 test:3 test:4 test:5

test: $(VENV)/.installed
	$(BIN) -m pytest $(PARALLEL)

test-long: $(VENV)/.installed
	$(BIN) -m pip install -q -e '.[long]'
	$(BIN) -m pytest $(PARALLEL) -m ''

lint: $(VENV)/.installed
	$(BIN) -m ruff check
	$(BIN) -m ruff format --check
	$(VENV)/bin/lint-imports

notebooks: $(VENV)/.installed
	$(BIN) -m experiments.notebooks

bench-peer: $(PEER)/.installed

# timm without its dependencies. It needs torchvision's Python code, whose compiled part may be of
# another torch; Pillow 13 refuses what timm's RandAugment sometimes asks for, posterize to 0 bits.
$(PEER)/.installed: Makefile
	@$(call make_venv,$(PEER))
	$(PEER)/bin/python -m pip install torch==2.13.0 safetensors huggingface_hub pyyaml 'pillow<13' numpy
	$(PEER)/bin/python -m pip install --no-deps timm==1.0.31 torchvision==0.28.0
	$(PEER)/bin/python -c 'import torch'
	@touch $@

# The first Python that is new enough makes the folder, unless a working one is there already.
define make_venv
if ! $(1)/bin/python -m pip --version >/dev/null 2>&1; then \
  for python in $(CANDIDATES); do \
    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
      echo "making $(1) with $$($$python --version)"; \
      exec $$python -m venv --clear $(1); \
    fi; \
  done; \
  echo 'error: vit_jax needs Python 3.11 or newer, and "$(PYTHON)" is older or not there;' >&2; \
  echo 'install one, or say which: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11' >&2; \
  exit 1; \
fi
endef
