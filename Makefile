# Everything a person types. The work is in scripts/ and CMakePresets.json.
.DEFAULT_GOAL := help
.PHONY: setup build test soak mutants demo test-reference test-vllm bench format lint fuzz clean help

# CUDA=1 builds for NVIDIA GPUs too, into build-cuda/ (docs/cuda.md).
preset := $(if $(CUDA),cuda,cpu)

setup:           ## install what is missing: packages, LibTorch, the model (VERIFY=1 re-reads every cached byte)
	@scripts/setup.sh $(if $(FUZZ),--fuzz) $(if $(VERIFY),--verify) $(if $(CUDA),--cuda)

build: setup     ## build everything into build/ (CUDA=1: for NVIDIA GPUs too, into build-cuda/)
	@scripts/build.sh $(preset)

test: setup      ## build and run every test (CUDA=1: of build-cuda/; FUZZ=60: then fuzz each target for so many seconds, as CI does)
	@scripts/build.sh $(preset) tested
	@scripts/test.sh $(preset)
	@$(if $(FUZZ),scripts/fuzz.sh $(FUZZ))

soak: build      ## crash safety of model directories, ten million states on all cores (SOAK_STATES=n for another number)
	@LATHE_CRASH_STATES=$${SOAK_STATES:-10000000} LATHE_CRASH_THREADS=0 LATHE_CRASH_SEED=$${SOAK_SEED:-1} build/src/history/crash_test

mutants: setup   ## break the code that writes model directories on purpose, line by line: a test must notice each time
	@python3 tools/mutants.py

demo: setup      ## teach a served model a fact, and undo it
	@scripts/build.sh cpu lathe
	@scripts/demo.sh

test-reference: build  ## compare with transformers (own environment in the cache: 0.7 GB to download, 1.7 GB on disk)
	@tests/reference/run.sh

test-vllm: build  ## teach a real vLLM on the CPU (own environment in the cache: 1.2 GB to download, 3.5 GB on disk; Python >= 3.11)
	@tests/vllm/run.sh

bench: build     ## measure speed and memory beside transformers
	@bench/run.sh

format:          ## apply clang-format
	@scripts/format.sh

lint:            ## layers, pages, versions, format, ruff, mypy, clippy; then clang-tidy on every file whose result is not known
	@scripts/setup.sh --lint
	@scripts/lint.sh
	@python3 tools/tidy.py

fuzz:            ## search for inputs that break the parsers: SECONDS (60) for each target, as many at once as there are cores
	@scripts/fuzz.sh $(SECONDS)

clean:           ## remove the build folders (the cache stays)
	@rm -rf build build-cuda build-core build-core-asan build-core-tsan build-fuzz build-mutants

help:            ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18
