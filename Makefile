# The two main commands: `make demo` shows hotslot in the lab, and `make test` runs all tests except the long ones. Most
# of the other targets are parts of these.

SHELL := /bin/bash
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin
export RUSTDOCFLAGS := -D warnings
STEP := tools/step
# Build the programs together with the tests. Tests enable more features of dependencies, so building the programs alone
# would compile most dependencies twice.
BUILD_TESTS := cargo build --quiet --locked --workspace --bins --tests

CONTRACT := env HOTSLOT_LONG_WALK=1 cargo test --quiet --locked --workspace --test stories contract::

.PHONY: help demo demo-stop test check long-tests contract fuzz lab-test long-lab-test bench install install-lab build release lab lab-down clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "make %-14s %s\n", $$1, $$2 }'

demo: install install-lab release lab ## attach a VF to a running guest through REST, and leave the service running
	@$(STEP) "demo" vagrant/demo

demo-stop: ## stop the service and the lab that `make demo` left running
	@vagrant/down

# The long tests rarely fail, so they have targets of their own.
test: check install-lab release lab lab-test ## all tests except the long ones, including the tests in the lab

# Tests wait most of the time, so more of them run at once than there are cores.
check: install ## the quick tests: format, lints, licences, docs, tests on the simulated host
	@$(STEP) "format" cargo fmt --all --check
	@$(STEP) "format of the fuzz targets" cargo fmt --manifest-path fuzz/Cargo.toml --check
	@$(STEP) "lock file of the fuzz targets" cargo fetch --quiet --locked --manifest-path fuzz/Cargo.toml
	@$(STEP) "lints" cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
	@$(STEP) "licences and bans" cargo deny --log-level error --locked check licenses bans sources
	@$(STEP) "advisories" tools/advisories
	@$(STEP) "lints of the Python clients" tools/clients lint
	@$(STEP) "the sandbox of the service" tools/sandbox
	@$(STEP) "docs" cargo doc --quiet --locked --workspace --no-deps --document-private-items
	@$(STEP) "build" $(BUILD_TESTS)
	@$(STEP) "quick tests" env RUST_TEST_THREADS=6 cargo test --quiet --locked --workspace

long-tests: install fuzz ## make every step of attach and detach fail, send many generated requests, and run the fuzz targets (an hour)
	@$(STEP) "build" $(BUILD_TESTS)
	@$(STEP) "every step" env HOTSLOT_LONG_WALK=1 cargo test --quiet --locked --workspace --test stories steps::
	@$(STEP) "many processes" env HOTSLOT_LONG_WALK=1 cargo test --quiet --locked --workspace --lib processes
	@$(STEP) "contract" $(CONTRACT)

contract: install ## send many generated requests to every operation of docs/openapi.json, and run generated clients
	@$(STEP) "build" $(BUILD_TESTS)
	@$(STEP) "contract" $(CONTRACT)

fuzz: install ## build the fuzz targets, and run each for some seconds
	@$(STEP) "fuzz" tools/fuzz

lab-test: ## the tests in the lab, which must be up (make lab)
	@$(STEP) "lab tests" tools/lab-test

long-lab-test: install install-lab release lab ## the tests in the lab that take minutes each
	@$(STEP) "long lab tests" tools/lab-test --long

bench: install install-lab release lab ## measure attach, detach, inventory, connections, start and memory against lower bounds of the same run
	@$(STEP) "benchmarks" tools/release bench -p hotslot-tests --features lab

install: ## install the requirements of the build and the quick tests
	@$(STEP) "install for build" tools/install build

install-lab: ## install the requirements of the lab
	@$(STEP) "install for the lab" tools/install lab

build:
	@$(STEP) "build" cargo build --quiet --locked --workspace

release: ## build target/release/hotslot (needs the requirements of `make install`)
	@$(STEP) "release build" tools/release

lab: install-lab ## start the lab
	@$(STEP) "lab up" vagrant/up

lab-down: ## stop the lab
	@$(STEP) "lab down" vagrant/down
