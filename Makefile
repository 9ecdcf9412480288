# The same commands for you and for CI: install, check, test; and demo for a first look.
VENV ?= .venv
PYTHON ?= python3
# PyTorch's CPU wheel index, where the default one brings the CUDA build (works on CPU too, but is large).
TORCH_INDEX ?=
# cuda for machines with GPUs: FBGEMM's build for them, and the Triton that PyTorch's wheel brings.
VARIANT ?= cpu
OF_cuda = -e 's/^fbgemm_gpu-cpu==/fbgemm_gpu==/' -e '/^triton==/d'
# `make test EDITABLE=` installs the package regularly, as a user gets it.
EDITABLE ?= -e

PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
RUN = $(VENV)/bin/python -m
PACKAGES = launcher models optim service sharding

.PHONY: install check test mutate faults demo bench bench-verify clean

install: $(VENV)/.installed

# torch first and torchrec last, without its dependencies: it asks for the GPU build of FBGEMM.
$(VENV)/.installed: pyproject.toml requirements.txt requirements-dev.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	mkdir -p build
	cat requirements.txt requirements-dev.txt | sed -e '' $(OF_$(VARIANT)) > build/requirements-$(VARIANT).txt
	$(PIP) install --quiet -r build/requirements-$(VARIANT).txt
	$(PIP) install --quiet --no-deps torchrec==1.8.0
	rm -rf build/lib  # setuptools would ship modules that were deleted since
	$(PIP) install --quiet --no-deps $(EDITABLE) .
	touch $@

# mypy cannot see an editable install through a mapped package directory: give it a tree of links.
build/types/sparta: Makefile
	mkdir -p $@
	for package in $(PACKAGES); do ln -sfn ../../../$$package $@/$$package; done
	touch $@

check: install build/types/sparta
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(VENV)/bin/lint-imports --no-cache

# A file stays with one worker, so that what its tests share is made once.
test: check
	$(RUN) pytest -n 2 --dist loadfile

# One-line bugs, each of which must turn a named law red.
mutate: install
	$(RUN) tests.mutate

# 200 kills at random times, after each of which training must go on as if there had been none; 7 minutes.
faults: install
	$(RUN) tests.faults.kills --kills 200 --log tests/faults/kills.jsonl

demo: install
	$(VENV)/bin/sparta demo

# One JSON object a question in build/bench, then the tables of them; two to three hours on two cores. See benchmarks/README.md.
BENCHMARKS = loader prepare kernels steps helen_step growth memory checkpoint telemetry loops
bench: install
	mkdir -p build/bench
	for name in $(BENCHMARKS); do \
		echo "$$name ..." && $(VENV)/bin/python benchmarks/$$name.py > build/bench/$$name.part && \
		mv build/bench/$$name.part build/bench/$$name-$$(date +%F).json || exit 1; \
	done
	$(RUN) benchmarks.speed build/bench

# Three of the committed ratios, drawn by the commit, measured again.
bench-verify: install
	$(VENV)/bin/python benchmarks/verify.py

clean:
	rm -rf build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
