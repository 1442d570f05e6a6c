help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' Makefile
setup:  ## install the package into this environment, editable, with all that tests and checks need
	pip install torch setuptools pybind11 ninja cmake && pip install --no-build-isolation -e '.[test,dev]'
build:  ## compile what has changed in csrc/ (VQVAE2_FAST_BUILD_CUDA=1: the CUDA kernels too)
	tools/rebuild
test:  ## run all tests, or those of ARGS, as in `make test ARGS=tests/ops`
	pytest --full $(ARGS)
check:  ## in under a minute: style, types and tests of what differs from main
	tools/check
weight:  ## print how heavy the project is: files, lines, errors, circles, modules loaded, words
	python tools/weight.py
lint:  ## check style and types: ruff, clang-format, mypy
	.ci/lint
types:  ## check types alone
	mypy vqvae2_fast
ci:  ## run everything that must hold before a change lands, in an environment of its own
	bash .ci/run
.PHONY: help setup build test check weight lint types ci
