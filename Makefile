PYTHON ?= python3
PY := .venv/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt

CPP := $(wildcard src/deepseek_v3/native/*.[ch]pp)

.PHONY: help setup demo reason book test test-kernels kernel-errors test-all test-interop test-gpu lint fmt notebook notebooks bugs check bench profile site clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

.venv/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else "make: this project runs on Python 3.10 to 3.13, and %s is %d.%d; name another: make PYTHON=python3.11 ..." % (("$(PYTHON)",) + v))'
	@echo "making .venv ..."
	@$(PYTHON) -m venv .venv

.venv/run.stamp: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing what the model and its server need (PyTorch is the large one) ..."
	@$(PIP) -e '.[serve]'
	@touch $@

.venv/dev.stamp: .venv/run.stamp
	@echo "installing what the tests need ..."
	@$(PIP) -e '.[dev]'
	@touch $@

.venv/read.stamp: .venv/run.stamp
	@echo "installing Jupyter ..."
	@$(PIP) -e '.[read]'
	@touch $@

setup: .venv/dev.stamp  ## make .venv with everything the tests need

demo: .venv/run.stamp  ## train a small DeepSeek-V3 on real text, show what it learned, and write text (5 minutes, two cores)
	@$(PY) -m deepseek_v3 demo

reason: .venv/run.stamp  ## from nothing to a model that adds: text, dialogues, then right and wrong alone (4 to 15 minutes)
	@$(PY) -m deepseek_v3 reason

book: .venv/run.stamp  ## train the model that speaks in the chapters, and put it into book_model/ (an hour on one core)
	@$(PY) -m experiments.book

test: $(if $(T),setup,lint)  ## every test but the slow ones; what CI runs. Some of them: make test T=tests/native
	@$(PY) -m pytest $(if $(T),$(T),-n 2 --dist worksteal)
	@$(if $(T),:,$(MAKE) --no-print-directory test-kernels)

test-all: setup  ## every test, the slow ones too
	@$(PY) -m pytest -n 2 --dist worksteal -m 'not gpu and not interop'

tests/interop/.clients/stamp: tests/interop/clients.txt
	@$(PYTHON) -m venv tests/interop/.clients
	@tests/interop/.clients/bin/python -m pip install --quiet --disable-pip-version-check -r tests/interop/clients.txt
	@touch $@

test-interop: setup tests/interop/.clients/stamp  ## install the peers (mlx-lm, llama.cpp, torchtitan, TRL, clients of the server) and compare with them
	@$(PIP) -e '.[dev,interop]'
	@$(PIP) --no-deps --upgrade --target tests/interop/.torchtitan -r tests/interop/torchtitan.txt
	@$(PIP) --no-deps --upgrade --target tests/interop/.trl -r tests/interop/trl.txt
	@cd tests/interop && npm install --silent --no-audit --no-fund
	@timeout 1500 bash tests/interop/build_llama.sh >/dev/null || echo "llama.cpp is not built yet; another call goes on"
	@$(PY) -m pytest -m interop tests

.venv/triton.stamp: tests/kernels/triton.txt .venv/dev.stamp
	@$(PY) -c 'import triton; assert triton.__version__ == "3.6.0"' 2>/dev/null || [ "$$(uname)" != Linux ] || \
		$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .venv/triton -r tests/kernels/triton.txt
	@touch $@

test-kernels: .venv/triton.stamp  ## Triton's kernels without a GPU: values in its interpreter, and compiled for sm_90a
	@PYTHONPATH=.venv/triton TRITON_INTERPRET=1 $(PY) -m pytest -m "triton and not slow" tests/kernels/test_values.py tests/kernels/test_layers.py tests/kernels/test_planted.py
	@PYTHONPATH=.venv/triton $(PY) -m pytest -m triton tests/kernels/test_compiled.py

kernel-errors: .venv/triton.stamp  ## the kernel's sums on chapter 05's tensor core: the numbers in its notebook
	@PYTHONPATH=.venv/triton:src:05_quantization TRITON_INTERPRET=1 $(PY) tests/kernels/accumulation.py

test-gpu: setup  ## on a GPU: training, generation, export and FP8 kernels are those of the CPU, and are timed; skipped where there is none
	@$(PY) -m pytest tests/gpu -m gpu
	@$(PY) -m benchmarks.fp8_gpu

lint: setup  ## ruff, pyright, and whether the C++ is formatted
	@$(PY) -m ruff check .
	@$(PY) -m pyright
	@! [ -x .venv/bin/clang-format ] || .venv/bin/clang-format --dry-run -Werror $(CPP)

fmt: setup  ## format Python by ruff and C++ by clang-format
	@$(PY) -m ruff check --fix --quiet .
	@$(PY) -m ruff format --quiet .
	@.venv/bin/clang-format -i $(CPP)

NB ?= 00_language_model/text_tokens.ipynb
notebook: .venv/read.stamp  ## open Jupyter on the book: make notebook NB=01_attention/self_attention.ipynb
	@PYTHONPATH="$(CURDIR)" $(PY) -m notebook --ServerApp.root_dir="$(CURDIR)" $(NB)

notebooks: setup  ## rebuild every notebook from its source, byte-identically
	@$(PY) -m utils.notebooks build

bugs: setup  ## plant every known mistake, show which test catches it
	@$(PY) -m utils.bugs

CH ?= 01
check: setup  ## grade your exercises: make check CH=02
	@$(PY) -m utils.exercises $(CH)

bench: setup  ## side-by-side timings against transformers, as ratios of one run; some of them: make bench B="decode serving"
	@$(PY) -m benchmarks $(B)

profile: setup  ## what a training step and a decoded token spend their time on, and what bounds them
	@$(PY) -m benchmarks.profile

build/site/tools.stamp: utils/site/packages.txt utils/site/package.json
	@echo "installing what builds the site ..."
	@command -v npm >/dev/null || { echo "make: the site's formulas are written by Node.js, and there is no npm"; exit 1; }
	@mkdir -p build/site && cp utils/site/package.json build/site/
	@$(PYTHON) -m venv build/site/.venv
	@build/site/.venv/bin/python -m pip install --quiet --disable-pip-version-check -r utils/site/packages.txt
	@cd build/site && npm install --silent --no-audit --no-fund
	@touch $@

site: .venv/run.stamp build/site/tools.stamp  ## the book, the documents, a reference and the explorer as pages: build/site/html (make site RUN=runs/mine)
	@build/site/.venv/bin/python -m utils.site --run "$(RUN)"

clean:  ## remove .venv, caches and runs
	rm -rf .venv runs build dist .pytest_cache .ruff_cache
