# Everything a contributor or CI runs. `make` alone lists the commands.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
PY := $(VENV)/bin/python
PANTS_VENV := .venv-pants
C_FILES = $(shell git ls-files --cached --others --exclude-standard '*.c' '*.h')
FUZZ_SECONDS ?= 60
SOAK_MINUTES ?= 30
SOAK_ACTIONS ?= 1000
SOAK_OPENS ?= 2000000
LAB_OPTIONS ?=

help: ## List these commands.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

setup: ## Install what is missing: system packages, .venv, .venv-pants (quick when done).
	@scripts/setup.sh

build: setup ## Compile launcher, helper and capture core; install rootseal into .venv.
	@scripts/build.sh

test: build ## Set up, build, run every test group (GROUP="unit kernel" for some); a table at the end.
	@$(PY) scripts/test.py $(GROUP)

lint: build ## ruff, mypy strict, clang-format, and the tests that lint the repository.
	@scripts/lint.sh

fmt: setup ## Format Python and C in place.
	@$(VENV)/bin/ruff format . && $(VENV)/bin/ruff check --fix --quiet .
	@[ -z "$(C_FILES)" ] || clang-format -i $(C_FILES)

asan: setup ## C tests under AddressSanitizer and UndefinedBehaviorSanitizer.
	@scripts/native_tests.sh asan

fuzz: build ## Fuzz each C parser, then all Python parsers, for FUZZ_SECONDS (60).
	@scripts/native_tests.sh fuzz $(FUZZ_SECONDS)

bench: build ## Run the benchmarks and write docs/benchmarks.md.
	@$(PY) bench/run_all.py

soak: build ## Hostile writers against the digest cache, then 1,000 actions and more for SOAK_MINUTES (30).
	@$(MAKE) -s -C native hostile records
	@$(PY) bench/soak.py --minutes $(SOAK_MINUTES) --actions $(SOAK_ACTIONS) --opens $(SOAK_OPENS)

soak-quick: build ## The soak for about a minute: nothing lost, no more than 40 MiB until all is warm. Part of ci.
	@$(PY) bench/soak.py --minutes 0.75 --actions 200 --opens 400000 --growth-mib 40

demo: build ## The main job on examples/: package, attest, verify, prove, refuse a tampered copy.
	@scripts/demo.sh

lab: build ## Boot other kernels under qemu and run the kernel tests there; writes docs/kernels.md.
	@scripts/lab.sh $(LAB_OPTIONS)

lab-pants: build ## Real Pants in the lab, on ext4 with fs-verity: about ten minutes.
	@scripts/lab.sh --only 6.12-nobpf --filesystem ext4 --tests tests/integration/test_fsverity_pants.py

ci: ## What .ci/run runs: lint, test, soak-quick, lab and demo.
	@$(MAKE) lint
	@$(MAKE) test
	@$(MAKE) soak-quick
	@$(MAKE) lab
	@$(MAKE) demo

nightly: ## What CI runs at night: fuzz for 300 s, soak, lab-pants, lab.
	@.ci/nightly

install-helper: build ## As root: install rootseal-scope, the one privileged binary (see SECURITY.md).
	@$(MAKE) -C native install-helper

clean: ## Remove build outputs and both virtual environments.
	@rm -rf build .venv .venv-pants pants-plugins/rootseal/bin pants-plugins/*.egg-info dist
	@find pants-plugins -name '*.so' -delete

.PHONY: help setup build test lint fmt asan fuzz bench soak soak-quick demo lab lab-pants ci nightly install-helper clean
