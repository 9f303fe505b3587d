.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install lock quickstart quickstart-dino test test-long test-faults lint docs notebooks bench-peer export-onnx

VENV := .venv
PEER := .venv-peer
ONNX := .venv-onnx
BIN := $(VENV)/bin/python
ONLY_LOCKED := $(filter 1,$(LOCKED))
STAMP := $(VENV)/.installed$(if $(ONLY_LOCKED),-locked,$(addprefix -,$(EXTRA)))
comma := ,
EXTRAS := dev$(addprefix $(comma),$(EXTRA))
FIGURE := runs/digits/figures/quickstart.png
SEEN := runs/dino_digits/figures/seen.png
PYTHON ?= python3
# One process per core. The tests of a file share a process and its fixtures.
PARALLEL := -n auto --dist loadfile
CANDIDATES = $(PYTHON) $(if $(filter file,$(origin PYTHON)),python3.13 python3.12 python3.11 python3.14)

help:
	@echo 'make install [EXTRA=NAME,...]  create .venv and install the package (PYTHON=... selects Python);'
	@echo '                               extras: tpu, cuda12, cuda13, gcs, sweep, demo, docs'
	@echo 'make install LOCKED=1          install the exact versions of requirements.lock, checked by hash'
	@echo 'make lock                      update requirements.lock within the ranges of requirements.txt'
	@echo 'make quickstart                train a ViT on digits, classify eight, draw the figure'
	@echo 'make quickstart-dino           train DINO on digits without labels, draw its attention'
	@echo 'make test                      run the quick tests'
	@echo 'make test-long                 run all tests, including those that take minutes'
	@echo 'make test-faults               kill, damage, fill and mutate: a part of the fault cases, ten minutes'
	@echo 'make lint                      run ruff and import-linter'
	@echo 'make docs                      build the documentation into build/site'
	@echo 'make notebooks                 generate experiments/notebooks/*.ipynb from the .py files'
	@echo 'make bench-peer                create .venv-peer with timm and transformers, for tools.benchmark'
	@echo '                               --against and the long tests of weights'
	@echo 'make export-onnx ARGS="..."    export a model as ONNX: --workdir=RUN --output=FILE.onnx; creates .venv-onnx'

install: $(STAMP)

ifneq ($(and $(ONLY_LOCKED),$(EXTRA)),)
$(error LOCKED=1 has no extras but dev; run make install LOCKED=1, then make install EXTRA=$(EXTRA))
endif

# Each extra has a stamp of its own and also touches the plain one, on which other targets depend.
$(STAMP): requirements.txt pyproject.toml $(if $(ONLY_LOCKED),requirements.lock)
	@$(call make_venv,$(VENV))
ifdef ONLY_LOCKED
	$(BIN) -m pip install --require-hashes -r requirements.lock
	$(BIN) -m pip install --no-deps --no-build-isolation -e .
else
	$(BIN) -m pip install -e '.[$(EXTRAS)]'
endif
	@touch $(VENV)/.installed $@
	@echo 'installed; next: make quickstart, or . $(VENV)/bin/activate'

ifneq ($(STAMP),$(VENV)/.installed)
$(VENV)/.installed: $(STAMP) ;
endif

# One file for all platforms and Python versions.
lock:
	@$(call make_venv,$(VENV))
	$(BIN) -m pip install -q 'uv>=0.13,<1'
	$(VENV)/bin/uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --custom-compile-command 'make lock' --extra dev -o requirements.lock pyproject.toml

# An interrupted quickstart resumes from its latest checkpoint.
quickstart: $(FIGURE)
	@echo 'done: $(FIGURE); to start over: rm -r runs/digits'

$(FIGURE): | $(VENV)/.installed
	$(BIN) -m vit_jax.train --config=configs/digits.py --workdir=runs/digits
	$(BIN) -m vit_jax.tools.predict --workdir=runs/digits --output=$@ \
	  test:0 test:1 test:2 test:3 test:4 test:5 test:6 test:7

quickstart-dino: $(SEEN)
	@echo 'done: $(SEEN); to start over: rm -r runs/dino_digits'

$(SEEN): | $(VENV)/.installed
	$(BIN) -m vit_jax.train --config=configs/dino_digits.py --workdir=runs/dino_digits
	$(BIN) -m vit_jax.tools.attend --workdir=runs/dino_digits --output=$@ \
	  --image=64 --interpolation=bilinear test:0 test:1 test:2 test:3 test:4 test:5

test: $(VENV)/.installed
	$(BIN) -m pytest $(PARALLEL)

test-long: $(VENV)/.installed
	$(BIN) -m pip install -q -e '.[long]'
	$(BIN) -m pytest $(PARALLEL) -m 'not faults'

# One core: with another number of threads, XLA rounds differently.
test-faults: $(VENV)/.installed
	$(BIN) -m pytest -n 0 -m faults tests/faults

lint: $(VENV)/.installed
	$(BIN) -m ruff check
	$(BIN) -m ruff format --check
	$(VENV)/bin/lint-imports

# docs/config.md is generated from the schema and committed.
docs: $(VENV)/.installed
	$(BIN) -m pip install -q -e '.[docs]'
	$(BIN) -m docs
	NO_MKDOCS_2_WARNING=1 $(BIN) -m mkdocs build --strict

notebooks: $(VENV)/.installed
	$(BIN) -m experiments.notebooks

bench-peer: $(PEER)/.installed

# timm without its dependencies: it needs only the Python code of torchvision, whose compiled part may
# not match torch. Pillow 13 rejects posterize with 0 bits, which timm's RandAugment may request.
$(PEER)/.installed: Makefile
	@$(call make_venv,$(PEER))
	$(PEER)/bin/python -m pip install torch==2.13.0 safetensors huggingface_hub pyyaml 'pillow<13' numpy
	$(PEER)/bin/python -m pip install --no-deps timm==1.0.31 torchvision==0.28.0
	$(PEER)/bin/python -m pip install 'transformers>=5.24,<6'
	$(PEER)/bin/python -c 'import torch'
	@touch $@

export-onnx: $(ONNX)/.installed
	@$(ONNX)/bin/python -m experiments.export_onnx $(ARGS)

$(ONNX)/.installed: requirements.txt experiments/export_onnx/requirements.txt
	@$(call make_venv,$(ONNX))
	$(ONNX)/bin/python -m pip install -r requirements.txt -c experiments/export_onnx/requirements.txt
	$(ONNX)/bin/python -m pip install --no-deps -r experiments/export_onnx/requirements.txt
	@touch $@

# Create the environment with the first suitable Python, unless it already exists and works.
define make_venv
if ! $(1)/bin/python -m pip --version >/dev/null 2>&1; then \
  for python in $(CANDIDATES); do \
    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
      echo "creating $(1) with $$($$python --version)"; \
      exec $$python -m venv --clear $(1); \
    fi; \
  done; \
  echo 'error: vit_jax needs Python 3.11 or newer; "$(PYTHON)" is older or does not exist.' >&2; \
  echo 'Install one, or pass its path: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11' >&2; \
  exit 1; \
fi
endef
