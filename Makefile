# Everything a person types in this repository. `make help` lists it.

CARGO   ?= cargo
PREFIX  ?= /usr/local
DESTDIR ?=
# Where systemd looks for units that no package of the distribution brought; a package says UNITDIR=/usr/lib/systemd/system.
UNITDIR ?= /usr/local/lib/systemd/system

all: build

build:    ## the release binary: target/release/blockferry
	$(CARGO) build --release

demo:     ## clone, change, replicate and verify an image under target/demo; needs no root
	bash docs/demo.sh

check:    ## formatting, lints and documentation, warnings denied
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --document-private-items

test:     ## everything that tests; installs what it needs (root on Debian or Ubuntu) or names it
	bash tests/needs
	PATH="$$PATH:/usr/sbin:/sbin" $(CARGO) test
	PATH="$$PATH:/usr/sbin:/sbin" $(CARGO) test --features failpoints --test kill --test doctor --test replay --test journals --test readonly
	$(MAKE) vm-test

vm-test: build ## real LVM on a real kernel in a throw-away guest: every case on one back-end, some on the other
	bash vm-tests/run --backend all

bench:    ## measures; no bench fails on a time
	$(CARGO) bench

fuzz:     ## what decodes and receives against libFuzzer, each target for a minute: make fuzz SECONDS=600 TARGETS="session"
	SECONDS_EACH=$(or $(SECONDS),60) bash fuzz/run $(TARGETS)

proptest: ## the random tests for longer: make proptest CASES=100000
	PROPTEST_CASES=$(or $(CASES),20000) PATH="$$PATH:/usr/sbin:/sbin" $(CARGO) test --release

man:      ## manual pages and shell completions under target/man, from the same words as --help
	$(CARGO) run --release --example man -- target/man

install: build man install-files ## into $(DESTDIR)$(PREFIX): program, manual pages, completions

# The same without building: what lies under target/ is taken as it is.
install-files:
	install -D -m 755 target/release/blockferry "$(DESTDIR)$(PREFIX)/bin/blockferry"
	for page in target/man/*.[1-8]; do \
	  install -D -m 644 "$$page" "$(DESTDIR)$(PREFIX)/share/man/man$${page##*.}/$${page##*/}" || exit 1; \
	done
	for unit in packaging/systemd/*; do \
	  install -D -m 644 "$$unit" "$(DESTDIR)$(UNITDIR)/$${unit##*/}"; \
	done
	install -D -m 644 target/man/blockferry.bash "$(DESTDIR)$(PREFIX)/share/bash-completion/completions/blockferry"
	install -D -m 644 target/man/_blockferry "$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_blockferry"
	install -D -m 644 target/man/blockferry.fish "$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/blockferry.fish"

clean:    ## removes target/
	$(CARGO) clean

help:     ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*##  *\(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name words; do printf '  make %-8s %s\n' "$$name" "$$words"; done

.PHONY: all build demo check test vm-test bench fuzz proptest man install install-files clean help
