# Every target does whatever set-up is still missing. `make help` lists them.

PYTHON ?= python3
TORCH ?= torch==2.14.1
DEVICE ?= cpu
ARGUMENTS ?=

# A development build compiles fewer architectures than a wheel: nvcc is the slow part.
DEVELOPMENT_ARCHITECTURES := $(or $(TORCH_CUDA_ARCH_LIST),8.0;9.0;10.0+PTX)

BIN := .venv/bin
NATIVE_SOURCES := $(shell find csrc -type f)
PYTHON_SOURCES := $(shell find torchext kernels models -name '*.py')
PACKAGE_SOURCES := setup.py pyproject.toml MANIFEST.in README.md LICENSE csrc kernels models torchext
CXX_SOURCES := $(shell find csrc tests -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h')
# Of the tests, with one thread each: two that spin on the same core take an age. On one that is
# busy with other work, fewer are faster.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(len(os.sched_getaffinity(0)))')
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --benchmark-disable
QUICK := not slow and not gpu and not packaging and not memory
REST := (slow or packaging) and not gpu and not memory

# The tools in .venv/bin come before the machine's, in the tests too.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help venv build test test-full test-sanitize test-races coverage bench bench-full demo layer-demo gallery \
        gpu-report gpu-check lint format wheel clean

help:
	@echo "make venv           create .venv with torch, this package (editable) and its tools"
	@echo "make build          rebuild the native libraries if a source has changed"
	@echo "make test           lint and the quick tests"
	@echo "make test-full      the other tests: slow, packaging, sanitizers, races"
	@echo "make test-sanitize  the emulated CUDA kernels under AddressSanitizer and UBSan"
	@echo "make test-races     the emulated CUDA kernels, every access checked for a missing barrier"
	@echo "make coverage       line coverage of Python and C++ through the op tests"
	@echo "make bench          time ours against pure PyTorch, 5 minutes (DEVICE=cpu|cuda)"
	@echo "make bench-full     every case, layout and dtype (ARGUMENTS=... for both)"
	@echo "make demo           fill a hole in a photo from the photo alone, as a picture sheet"
	@echo "make layer-demo     region normalisation on a photo, as a picture sheet"
	@echo "make gallery        docs/gallery.md: every paper on real photographs, 2 minutes each"
	@echo "make gpu-report     what the compilers say of every CUDA and Triton kernel"
	@echo "make gpu-check      on a machine with a GPU: its tests and the benchmark into results/gpu-check.json"
	@echo "make lint, format   check or apply ruff and clang-format"
	@echo "make wheel          a manylinux wheel in wheelhouse/, an sdist in dist/"
	@echo "make clean          remove what was built (not .venv)"

# --- set-up ------------------------------------------------------------------------------------

.venv/.torch:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install '$(TORCH)' 'setuptools>=77' wheel pybind11 ninja numpy
	touch $@

.venv/.installed: .venv/.torch pyproject.toml setup.py
	TORCH_CUDA_ARCH_LIST='$(DEVELOPMENT_ARCHITECTURES)' TORCHEXT_STRICT=1 \
	$(BIN)/python -m pip install --no-build-isolation -v -e '.[models,test,bench,demo]'
	mkdir -p build
	touch build/.native $@

build/.native: .venv/.installed $(NATIVE_SOURCES)
	TORCH_CUDA_ARCH_LIST='$(DEVELOPMENT_ARCHITECTURES)' TORCHEXT_STRICT=1 \
	$(BIN)/python setup.py build_ext --inplace
	touch $@

# Networks of others, whose layers `torchext.accelerate` is tried on.
.venv/.networks: .venv/.installed
	$(BIN)/python -m pip install 'monai>=1.5' 'einops>=0.7'
	touch $@

venv: .venv/.installed

build: build/.native

# --- tests -------------------------------------------------------------------------------------

test: lint build
	$(PYTEST) -m '$(QUICK)' $(ARGUMENTS)

test-full: build wheel .venv/.networks
	$(BIN)/pytest -m 'memory and not gpu' tests/ops
	$(PYTEST) -m '$(REST)' $(ARGUMENTS)
	$(MAKE) test-sanitize
	$(MAKE) test-races

# The sanitizers' run-time library must be loaded before Python is. Python itself never frees all.
test-sanitize: build
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 TORCHEXT_EMULATOR_SANITIZE=1 \
	TORCHEXT_TEST_BACKENDS=cuda-emulated $(PYTEST) -m '$(QUICK)' tests/ops $(ARGUMENTS)

# Every kernel of every op runs in these.
test-races: build
	TORCHEXT_EMULATOR_RACES=1 TORCHEXT_TEST_BACKENDS=cuda-emulated \
	$(PYTEST) -m '$(QUICK)' -k 'emulated and (order or backward)' tests/ops $(ARGUMENTS)

# A second build, with counters, beside the development build, which stays as fast as it is.
COVERAGE := $(CURDIR)/build/coverage
coverage: build
	rm -rf $(COVERAGE) build/cuda_emulator/objects/*.gcda
	mkdir -p $(COVERAGE)
	cp -r $(PACKAGE_SOURCES) $(COVERAGE)
	rm -rf $(COVERAGE)/torchext/lib $(COVERAGE)/torchext/*.so
	cd $(COVERAGE) && TORCHEXT_COVERAGE=1 TORCHEXT_CUDA=0 \
	python -m pip install --quiet --no-build-isolation --no-deps --target site .
	PYTHONPATH=$(COVERAGE)/site TORCHEXT_EMULATOR_COVERAGE=1 \
	TORCHEXT_TEST_BACKENDS=reference,cpu,cuda-emulated COVERAGE_FILE=$(COVERAGE)/.coverage \
	$(PYTEST) -q -m '$(QUICK)' --cov=torchext --cov-report=term tests/ops tests/nn $(ARGUMENTS)
	gcovr --root $(COVERAGE) --filter '.*/csrc/' $(COVERAGE)/build
	gcovr --root . --filter csrc/ build/cuda_emulator

# --- the rest ----------------------------------------------------------------------------------

bench: build
	$(BIN)/python -m benchmarks --device $(DEVICE) $(ARGUMENTS)

bench-full: build
	$(BIN)/python -m benchmarks --all --device $(DEVICE) $(ARGUMENTS)

demo: build
	$(BIN)/python -m examples.inpaint_one_photo $(ARGUMENTS)

layer-demo: build
	$(BIN)/python -m examples.region_norm_layer $(ARGUMENTS)

gallery: build
	$(BIN)/python -m examples.gallery $(ARGUMENTS)

gpu-report: build
	$(BIN)/python -m benchmarks.gpu_report $(ARGUMENTS)

gpu-check: build
	$(BIN)/python -m benchmarks.gpu_check $(ARGUMENTS)

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)

format: .venv/.installed
	$(BIN)/ruff check --fix-only --exit-zero .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

# From the sdist, so that a file missing there is found. PyTorch's and CUDA's libraries come with
# the torch that is installed; the driver's with the machine.
wheelhouse/.built: .venv/.installed $(NATIVE_SOURCES) $(PYTHON_SOURCES) setup.py MANIFEST.in README.md
	rm -rf dist wheelhouse
	TORCHEXT_STRICT=1 $(BIN)/python -m build --no-isolation --skip-dependency-check
	$(BIN)/auditwheel repair --wheel-dir wheelhouse \
	    --exclude 'libtorch*' --exclude 'libc10*' --exclude 'libcuda*' dist/*.whl
	touch $@

wheel: wheelhouse/.built

clean:
	rm -rf build dist wheelhouse *.egg-info torchext/lib torchext/*.so .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
