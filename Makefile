# `make demo` and `make test` set everything up by themselves, once: a virtual environment in .venv, or in
# VENV=PATH (an existing one is used as it is and only added to).

VENV ?= .venv
PYTHON ?= python3
JOBS ?= 3
BIN := $(VENV)/bin
# two stamps: the demo needs no tests' packages, and works without DALI
DEMO := $(VENV)/.fastmoco-demo
STAMP := $(VENV)/.fastmoco-set-up
# of the demo: make demo ARGS='--src photos/ --out runs/photos'
ARGS ?=

.PHONY: demo test test-long lint lint-deploy docs format bench clean help

help: ## what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(DEMO) ## train on made images and write runs/demo/report.html
	$(BIN)/python -m fastmoco demo $(ARGS)

test: $(STAMP) ## run the tests, as many at a time as JOBS says
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not long"

test-long: $(STAMP) ## random kills and other faults, damaged files, faulty servers, every line of the docs, memory and the GPU suite on a CPU, in full; about an hour on two cores
	$(BIN)/python -m pytest -q -m long
	FASTMOCO_KILLS=25 $(BIN)/python -m pytest -q tests/shards/test_interruptions.py -k random_moments
	FASTMOCO_MOMENTS=20 $(BIN)/python -m pytest -q tests/fastmoco/test_interrupts.py
	$(BIN)/python -m tests.fuzz --count 20000 --seed 0
	$(BIN)/python tests/faults.py
	FASTMOCO_WORLDS=4,2,3,1 $(BIN)/python -m pytest -q tests/fastmoco/test_worlds.py
	$(BIN)/python -m tests.endurance --runs 40 --seed 0
	$(BIN)/python -m tests.clusters
	$(BIN)/python -m tests.documented
	FASTMOCO_FACE=1 $(BIN)/python -m pytest -q tests/test_product.py
	$(BIN)/python benchmarks/soak.py
	$(BIN)/python benchmarks/gpu_suite.py --device cpu --tiny --out runs/gpu_suite_tiny.jsonl

lint: $(STAMP) ## formatting, lint, types, direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q tests/test_imports.py
	$(MAKE) lint-deploy

lint-deploy: $(STAMP) ## Dockerfile, cluster and CI files, issue forms, citation
	$(BIN)/yamllint --strict .
	$(BIN)/shellcheck deploy/*.sbatch .ci/run
	test ! -x $(BIN)/hadolint || $(BIN)/hadolint deploy/Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/idea.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

docs: $(VENV)/.fastmoco-docs ## build the documentation into site/; broken links and missing references fail
	$(BIN)/mkdocs build --strict

format: $(STAMP) ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## images per second of loader, model, and both
	$(BIN)/python benchmarks/imgs_per_sec.py

clean: ## remove what was built, and caches; not runs, not the virtual environment
	rm -rf build dist .pytest_cache .ruff_cache pipelines/kernels/__pycache__

$(DEMO): pyproject.toml
	@echo 'Setting up $(VENV), once: torch and a few small packages, some minutes. On Linux they take 6 GB of disk, most of'
	@echo 'it for NVIDIA GPUs. pip shows its progress:'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e .
	@touch $@

# DALI comes where it has a wheel for this platform, for the CUDA version that torch was built with; without one
# everything works on the torch backend. Any other failure of pip stops the set-up.
$(STAMP): pyproject.toml
	@echo 'Setting up $(VENV) for the tests, once: torch, DALI, Ray and tools, 8 GB of disk on Linux, some minutes:'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e '.[dev]'
	cuda=$$($(BIN)/python -c "import torch; print((torch.version.cuda or '13').split('.')[0])"); \
	if ! $(BIN)/python -m pip install "nvidia-dali-cuda$${cuda}0" 2> $(VENV)/dali.log; then \
		cat $(VENV)/dali.log; \
		grep -q 'No matching distribution' $(VENV)/dali.log || exit 1; \
		echo 'DALI has no wheel for this platform: going on with the torch backend'; \
	fi
	@touch $@ $(DEMO)

$(VENV)/.fastmoco-docs: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -e '.[docs]'
	touch $@
