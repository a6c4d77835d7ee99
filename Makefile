# The two main commands: `make demo` shows hotslot in the lab, and `make test` runs all tests except the long ones. Most
# of the other targets are parts of these.

SHELL := /bin/bash
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin
export RUSTDOCFLAGS := -D warnings
STEP := tools/step
TARGET := $(or $(CARGO_TARGET_DIR),target)
# Build the programs together with the tests. Tests enable more features of dependencies, so building the programs alone
# would compile most dependencies twice.
BUILD_TESTS := cargo build --quiet --locked --workspace --bins --tests

CONTRACT := env HOTSLOT_LONG_WALK=1 cargo test --quiet --locked --workspace --test stories contract::

.PHONY: help try page-test screenshots demo demo-stop test check long-tests contract fuzz lab-test lab-test-next long-lab-test bench requirements lab-requirements build \
    release install install-docs uninstall deb dist package-test lab lab-down

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "make %-14s %s\n", $$1, $$2 }'

try: ## serve a made-up host, and print the link to its page: no hardware, no lab, and no root after make requirements
	@command -v cargo >/dev/null && pkg-config --exists libvirt || { echo "cargo or libvirt-dev is missing; run make requirements as root" >&2; exit 1; }
	@cargo run --quiet --locked -p hotslot -- serve --simulate

demo: requirements lab-requirements release lab ## attach a VF to a running guest through REST, and leave the service running
	@$(STEP) "demo" vagrant/demo

demo-stop: ## stop the service and the lab that `make demo` left running
	@vagrant/down

# The long tests rarely fail, so they have targets of their own. The lab and the package have the program of the quick tests
# here, because a release takes a quarter of an hour to build; `make long-lab-test` and `make package-test` have the release.
# The lab uses one core, so the package is tested beside it.
TESTED := $(TARGET)/debug/hotslot-in-lab
test: check lab-requirements lab ## all tests except the long ones, including the quick tests in the lab and the test of the package
	@strip --strip-debug --preserve-dates -o $(TESTED) $(TARGET)/debug/hotslot
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=line BINARY=$(TESTED) COMPRESSION='-Zgzip -z1' lab-test package-test
	@rm $(TARGET)/hotslot_*.deb

# Tests wait most of the time, so more of them run at once than there are cores.
check: requirements ## the quick tests: format, lints, licences, docs, tests on the simulated host
	@$(STEP) "format" cargo fmt --all --check
	@$(STEP) "format of the fuzz targets" cargo fmt --manifest-path fuzz/Cargo.toml --check
	@$(STEP) "format of the generated client's program" cargo fmt --manifest-path tests/generated/Cargo.toml --check
	@$(STEP) "lock file of the fuzz targets" cargo fetch --quiet --locked --manifest-path fuzz/Cargo.toml
	@$(STEP) "lints" cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
	@$(STEP) "licences and bans" cargo deny --log-level error --locked check licenses bans sources
	@$(STEP) "advisories" tools/advisories
	@$(STEP) "lints of the Python clients" tools/clients lint
	@$(STEP) "the sandboxes of the service and its helper" tools/sandbox
	@$(STEP) "links of the pages" tools/docs
	@$(STEP) "docs" cargo doc --quiet --locked --workspace --no-deps --document-private-items
	@$(STEP) "build" $(BUILD_TESTS)
	@$(STEP) "quick tests" env RUST_TEST_THREADS=6 cargo test --quiet --locked --workspace

long-tests: requirements fuzz ## make every step of attach and detach fail, send many generated requests, and run the fuzz targets (an hour)
	@$(STEP) "build" $(BUILD_TESTS)
	@$(STEP) "every step" env HOTSLOT_LONG_WALK=1 cargo test --quiet --locked --workspace --test stories steps::
	@$(STEP) "many processes" env HOTSLOT_LONG_WALK=1 cargo test --quiet --locked --workspace --lib processes
	@$(STEP) "contract" $(CONTRACT)

contract: requirements ## send many generated requests to every operation of docs/openapi.json, and run generated clients
	@$(STEP) "build" $(BUILD_TESTS)
	@$(STEP) "contract" $(CONTRACT)

page-test: requirements ## the stories of the page in Chromium
	@$(STEP) "install for the page" tools/install page
	@$(STEP) "build" $(BUILD_TESTS)
	@$(STEP) "page tests" env RUST_TEST_THREADS=3 cargo test --quiet --locked -p hotslot-tests --test stories page:: -- --include-ignored

# The pictures of the docs have 256 colours, so that the repository stays small.
screenshots: requirements ## a picture of each page, in light, in dark, in a narrow window and on a phone, in target/screenshots; and those in docs/pictures
	@$(STEP) "install for the page" tools/install page
	@$(STEP) "build" $(BUILD_TESTS)
	@$(STEP) "pictures" env HOTSLOT_SCREENSHOTS=$(CURDIR)/target/screenshots HOTSLOT_PICTURES=$(CURDIR)/docs/pictures cargo test --quiet --locked -p hotslot-tests --test stories page::looks:: -- --include-ignored
	@pngquant --force --strip --ext .png 256 docs/pictures/*.png
	@ls target/screenshots
	@ls -s docs/pictures

fuzz: requirements ## build the fuzz targets, and run each for some seconds
	@$(STEP) "fuzz" tools/fuzz

lab-test: ## the tests in the lab, which must be up (make lab), with the release or the program that BINARY names
	@$(STEP) "lab tests" tools/lab-test

# Two labs at a time are slow.
lab-test-next: export HOTSLOT_LAB_FLAVOUR = next
lab-test-next: requirements lab-requirements release ## the core of the lab's tests with the newest kernel, libvirt and QEMU, in a lab of its own
	@HOTSLOT_LAB_FLAVOUR=stable vagrant/halt
	@$(STEP) "lab up (next)" vagrant/up
	@$(STEP) "lab tests (next)" tools/lab-test --core
	@vagrant/halt

long-lab-test: requirements lab-requirements release lab ## the tests in the lab that take minutes each
	@$(STEP) "long lab tests" tools/lab-test --long

bench: requirements lab-requirements release lab ## measure attach, detach, inventory, connections, start and memory against lower bounds of the same run
	@$(STEP) "benchmarks" tools/release bench -p hotslot-tests --features lab

requirements: ## install the requirements of the build and the quick tests
	@$(STEP) "install for build" tools/install build

lab-requirements: ## install the requirements of the lab, and Chromium for its test of the page
	@$(STEP) "install for the lab" tools/install lab
	@$(STEP) "install for the page" tools/install page

build:
	@$(STEP) "build" cargo build --quiet --locked --workspace

release: ## build target/release/hotslot (needs the requirements of `make requirements`)
	@$(STEP) "release build" tools/release

# Where `make install` puts the files. DESTDIR is put before every path, for packages.
PREFIX ?= /usr/local
UNITDIR ?= $(PREFIX)/lib/systemd/system
SYSCONFDIR ?= /etc
BINARY ?= $(TARGET)/release/hotslot
SHARE := $(DESTDIR)$(PREFIX)/share
CONFIGURATION := $(DESTDIR)$(SYSCONFDIR)/hotslot/hotslot.toml
# zsh looks into the first below /usr, and into the second below /usr/local.
ZSH := $(SHARE)/zsh/$(if $(filter /usr,$(PREFIX)),vendor-completions,site-functions)

install: install-docs ## install target/release/hotslot with its units, manual pages and completions below PREFIX (/usr/local)
	@test -x $(BINARY) || { echo "there is no $(BINARY); run make release" >&2; exit 1; }
	install -Dm755 $(BINARY) $(DESTDIR)$(PREFIX)/bin/hotslot
	sed 's|/usr/bin/|$(PREFIX)/bin/|' packaging/hotslot.service | install -Dm644 /dev/stdin $(DESTDIR)$(UNITDIR)/hotslot.service
	sed 's|/usr/bin/|$(PREFIX)/bin/|' packaging/hotslot-helper.service | install -Dm644 /dev/stdin $(DESTDIR)$(UNITDIR)/hotslot-helper.service
	sed 's|/usr/bin/|$(PREFIX)/bin/|' packaging/hotslot-hooks.service | install -Dm644 /dev/stdin $(DESTDIR)$(UNITDIR)/hotslot-hooks.service
	install -Dm644 -t $(DESTDIR)$(UNITDIR) packaging/hotslot-helper.socket packaging/hotslot-hooks.socket
	install -Dm644 packaging/hotslot.sysusers $(DESTDIR)$(PREFIX)/lib/sysusers.d/hotslot.conf
	install -Dm644 packaging/hotslot.tmpfiles $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/hotslot.conf
	install -Dm644 -t $(SHARE)/hotslot packaging/hotslot.dashboard.json packaging/hotslot.rules.yml hotslot.example.toml
	install -Dm644 packaging/hotslot.hooks.toml $(SHARE)/hotslot/hooks.example.toml
	$(BINARY) completions bash | install -Dm644 /dev/stdin $(SHARE)/bash-completion/completions/hotslot
	$(BINARY) completions zsh | install -Dm644 /dev/stdin $(ZSH)/_hotslot
	$(BINARY) completions fish | install -Dm644 /dev/stdin $(SHARE)/fish/vendor_completions.d/hotslot.fish
	test -e $(CONFIGURATION) || install -Dm600 hotslot.example.toml $(CONFIGURATION)
	mkdir -p $(SHARE)/man/man1
	$(BINARY) man-pages $(SHARE)/man/man1

install-docs:
	install -Dm644 -t $(SHARE)/doc/hotslot CHANGELOG.md SECURITY.md hotslot.example.toml
	install -Dm644 -t $(SHARE)/doc/hotslot/docs docs/*.md docs/openapi.json
	install -Dm644 -t $(SHARE)/doc/hotslot/docs/reference docs/reference/*.md
	$(if $(wildcard docs/pictures/*.png),install -Dm644 -t $(SHARE)/doc/hotslot/docs/pictures docs/pictures/*.png)

uninstall: ## remove what `make install` installed; the configuration and the records stay
	rm -rf $(DESTDIR)$(PREFIX)/bin/hotslot $(DESTDIR)$(UNITDIR)/hotslot.service \
	    $(DESTDIR)$(UNITDIR)/hotslot-helper.service $(DESTDIR)$(UNITDIR)/hotslot-helper.socket \
	    $(DESTDIR)$(UNITDIR)/hotslot-hooks.service $(DESTDIR)$(UNITDIR)/hotslot-hooks.socket \
	    $(DESTDIR)$(PREFIX)/lib/sysusers.d/hotslot.conf $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/hotslot.conf \
	    $(SHARE)/hotslot $(SHARE)/doc/hotslot $(SHARE)/bash-completion/completions/hotslot \
	    $(ZSH)/_hotslot $(SHARE)/fish/vendor_completions.d/hotslot.fish \
	    $(SHARE)/man/man1/hotslot.1 $(SHARE)/man/man1/hotslot-*.1

deb: ## make the Debian package of the release: target/hotslot_VERSION_ARCH.deb
	@$(STEP) "install for the package" tools/install package
	@$(STEP) "Debian package" tools/deb

dist: release deb ## collect a release in target/dist: package, tarballs, list of libraries, notes, checksums
	@$(STEP) "dist" tools/dist

package-test: deb ## install, upgrade, remove and purge the package in a clean Debian 12 and 13
	@$(STEP) "test of the package" tools/package-test

lab: lab-requirements ## start the lab
	@$(STEP) "lab up" vagrant/up

lab-down: ## stop the lab
	@$(STEP) "lab down" vagrant/down
