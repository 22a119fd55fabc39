# make demo   the speed of the ops, and training with and without selection: two minutes (DEMO_ARGS=... for bench.demo)
# make test   run the tests, four minutes on two cores (PYTEST_ARGS=... for pytest)
# make test-all  and the CUDA kernels in every order of threads and under sanitizers, ten minutes, as CI does
# make examples  run examples/ in the frameworks that they are for, and samplers in all, four minutes on two cores
# make bench  measure every op against its rivals, 25 minutes on two cores and more for further instruction sets that the
#             machine has (BENCH_ARGS='--variant avx2' for one alone); make bench-quick: 2
# make experiments  compare selection methods on real data, 90 minutes on two cores; what is there is not done again
# make subsets  compare subsets chosen once, ASSS's and its rivals', on eight tables, resumably: 90 minutes on two cores
# make leaderboard  every method on one table and page, resumably: 3 hours on two cores (EXPERIMENT_ARGS=--quick: 10 minutes)
# make docs  the site of docs/ into build/docs; every warning is an error
# make gpu-check  on a machine with an NVIDIA GPU: build, tests, benchmarks; with PYTHON=... in that Python, no .venv
# make lint   ruff, clang-format and mypy
# make wheels  the wheel of this version into dist/, for any Python and torch 2.11 or newer; with the CUDA kernels where nvcc
#             is, unless PYSEL_CUDA=OFF; WHEEL_ARGS='--machine aarch64' cross-builds that machine's
# make try-wheel  install it in empty environments, with the oldest Python and torch for the CPU that are to be had, and with
#             the newest, and ask it for the golden vectors (TRY_ARGS=--cuda, or '--python python3.10 --torch 2.11.0')
# make release-check  all that must hold before a release: version, changelog, golden vectors, wheels, site, archive
# make build  compile the extension into pysel/
# make help   these lines
# make clean  remove what the build made;  rm -r .venv removes the environment too
#
# Each sets up what it needs in .venv on first use. PYSEL_CUDA, PYSEL_CUDA_ARCHS and MAX_JOBS reach the build as
# environment variables; after changing one of them: make -B build.

# Threads that spin while they wait starve each other on a small or shared machine.
export OMP_WAIT_POLICY ?= PASSIVE
# What a step prints is seen as it is printed, in a file as on a terminal.
export PYTHONUNBUFFERED = 1

PYTHON ?= python3
PY := .venv/bin/python
CXX_FILES = $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

# $(call need,command that succeeds,what to say when it does not)
need = @$(1) >/dev/null 2>&1 || { echo 'pysel: $(2)' >&2; exit 1; }

PIP = $(PY) -m pip install --disable-pip-version-check

.PHONY: demo test test-all examples bench bench-quick experiments subsets leaderboard gpu-check docs wheels try-wheel release-check lint build help clean

demo: .venv/built
	@$(PY) -m bench.demo $(DEMO_ARGS)

# A file's tests stay together, for they share what they build.
test test-all: .venv/built .venv/dev
	@$(PY) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(if $(filter test-all,$@),--long) $(PYTEST_ARGS)

examples: .venv/built .venv/dev .venv/frameworks
	@$(PY) -m pytest --numprocesses auto --maxprocesses 4 --long $(PYTEST_ARGS) \
		tests/test_examples.py tests/test_frameworks.py tests/test_framework_grid.py tests/test_selection_log.py

bench: .venv/built .venv/rivals
	@$(PY) -m bench.run $(BENCH_ARGS)

bench-quick: .venv/built .venv/rivals
	@$(PY) -m bench.run --quick $(BENCH_ARGS)

experiments: .venv/built
	@$(PY) -m bench.experiments.run $(EXPERIMENT_ARGS)

subsets: .venv/built
	@$(PY) -m bench.experiments.subsets $(EXPERIMENT_ARGS)
	@$(PY) -m bench.experiments.subsets_report

leaderboard: .venv/built
	@$(PY) -m bench.experiments.leaderboard $(EXPERIMENT_ARGS)

# The Python that was asked for, as it is; otherwise the one in .venv.
ASKED := $(if $(filter command environment,$(firstword $(origin PYTHON))),$(PYTHON))
gpu-check: $(if $(ASKED),,.venv/dev)
	@$(or $(ASKED),$(PY)) -m bench.gpu_check $(GPU_CHECK_ARGS)

docs: .venv/built .venv/docs
	@$(PY) -m sphinx --builder html --nitpicky --fail-on-warning --keep-going --fresh-env -d build/doctrees docs build/docs
	@echo 'pysel: build/docs/index.html'

wheels: .venv/built .venv/dev
	$(if $(findstring aarch64,$(WHEEL_ARGS)),$(call need,command -v aarch64-linux-gnu-g++,no aarch64-linux-gnu-g++. Type: apt-get install g++-aarch64-linux-gnu))
	@$(PY) -m release.wheel $(WHEEL_ARGS)

try-wheel: .venv/dev
	@$(PY) -m release.try_wheel $(TRY_ARGS)

release-check: wheels .venv/docs
	@$(PY) -m release.check

lint: .venv/dev
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@.venv/bin/clang-format --dry-run -Werror $(CXX_FILES)
	@$(PY) -m mypy

build: .venv/built

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

clean:
	rm -rf build dist pysel.egg-info pysel/lib .venv/built

.venv/installed: requirements.txt
	$(call need,command -v $(firstword $(CXX)),no C++ compiler $(firstword $(CXX)). Type: apt-get install g++)
	$(call need,$(PYTHON) -c 'import sys; assert sys.hexversion >= 0x030b0000',no $(PYTHON) of version 3.11 or newer. Name one: make PYTHON=...)
	$(call need,$(PYTHON) -c 'import ensurepip; import venv',$(PYTHON) cannot make virtual environments. Type: apt-get install python3-venv)
	@echo 'pysel: installing the pinned packages into .venv'
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@$(PIP) -r requirements.txt
	@touch $@

.venv/dev: .venv/installed requirements-dev.txt
	@echo 'pysel: installing what tests and linters take into .venv'
	@$(PIP) -r requirements-dev.txt
	@touch $@

.venv/docs: .venv/installed requirements-docs.txt
	@echo 'pysel: installing what the site is made with into .venv'
	@$(PIP) -r requirements-docs.txt
	@touch $@

.venv/rivals: .venv/installed requirements-bench.txt
	@echo 'pysel: installing the libraries to measure against into .venv'
	@$(PIP) -r requirements-bench.txt
	@touch $@

# timm asks for a torchvision, which asks for a torch of its own. Beside a torch for the CPU it cannot be imported, and
# others import it wherever they find it: so both lie apart.
.venv/frameworks: .venv/installed requirements-frameworks.txt
	@echo 'pysel: installing the frameworks that the examples are for into .venv'
	@$(PIP) -r requirements-frameworks.txt
	@$(PIP) --no-deps --upgrade --target .venv/timm timm==1.0.31 torchvision==0.28.0
	@touch $@

# The folders are listed too: their time changes when a file comes or goes.
.venv/built: .venv/installed setup.py CMakeLists.txt pyproject.toml $(wildcard csrc csrc/* csrc/*/*)
	@echo 'pysel: compiling'
	@$(PY) setup.py --quiet build_ext --inplace  # in sight: pip would hide it, and finds it done
	@$(PIP) --no-build-isolation --no-deps --editable .
	@$(PY) -c 'import pysel; print("pysel:", pysel.build_info())'
	@touch $@
