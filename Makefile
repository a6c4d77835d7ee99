# Two commands: `make demo` shows hotslot at work in the lab, `make test` passes all tests but the long ones.
# The others are parts of these.

SHELL := /bin/bash
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin
export RUSTDOCFLAGS := -D warnings
STEP := tools/step
# The programs with the tests: built alone, most dependencies would be compiled once more, for tests use more of them.
BUILD_TESTS := cargo build --quiet --workspace --bins --tests

.PHONY: help demo demo-stop test check long-tests fuzz lab-test long-lab-test bench install install-lab build release lab lab-down clean

help: ## what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "make %-14s %s\n", $$1, $$2 }'

demo: install install-lab release lab ## plug a VF into a running guest through REST, and leave the service up
	@$(STEP) "demo" vagrant/demo

demo-stop: ## stop what `make demo` left up
	@vagrant/down

# The long ones rarely fail: they have commands of their own.
test: check install-lab release lab lab-test ## all tests but the long ones, the lab's among them

# Most tests wait most of the time: more of them than there are cores go on at once.
check: install ## the quick part: format, lints, licences, docs, tests on the simulated host
	@$(STEP) "format" cargo fmt --all --check
	@$(STEP) "format of the fuzz targets" cargo fmt --manifest-path fuzz/Cargo.toml --check
	@$(STEP) "lints" cargo clippy --quiet --workspace --all-targets -- -D warnings
	@$(STEP) "licences and bans" cargo deny --log-level error check licenses bans sources
	@$(STEP) "docs" cargo doc --quiet --workspace --no-deps --document-private-items
	@$(STEP) "build" $(BUILD_TESTS)
	@$(STEP) "quick tests" env RUST_TEST_THREADS=6 cargo test --quiet --workspace

long-tests: install fuzz ## what the quick tests do a part of, whole: every step of attach and detach goes wrong; and the fuzz targets (half an hour)
	@$(STEP) "build" $(BUILD_TESTS)
	@$(STEP) "every step" env HOTSLOT_LONG_WALK=1 cargo test --quiet --workspace --test stories steps::
	@$(STEP) "many processes" env HOTSLOT_LONG_WALK=1 cargo test --quiet --workspace --lib processes

fuzz: install ## every fuzz target for some seconds, after a build of its own
	@$(STEP) "fuzz" tools/fuzz

lab-test: ## the tests in the lab, which must be up (make lab)
	@$(STEP) "lab tests" tools/lab-test

long-lab-test: install install-lab release lab ## the tests in the lab that take minutes each
	@$(STEP) "long lab tests" tools/lab-test --long

bench: install install-lab release lab ## measure attach, detach, the inventory, start and memory against floors of the same run
	@$(STEP) "benchmarks" cargo bench -p hotslot-tests --features lab

install: ## what compiling and the quick tests need
	@$(STEP) "install for build" tools/install build

install-lab: ## what the lab needs
	@$(STEP) "install for the lab" tools/install lab

build:
	@$(STEP) "build" cargo build --quiet --workspace

release:
	@$(STEP) "release build" cargo build --quiet --release -p hotslot

lab: install-lab ## bring the lab up
	@$(STEP) "lab up" vagrant/up

lab-down: ## take the lab down
	@$(STEP) "lab down" vagrant/down
