# Every target installs what it lacks from Debian's packages when it may (root), and otherwise
# says exactly what to install.
CARGO ?= cargo
# Options of the simulator; none = 2,000 fresh seeds, and 500 with a third voter
SEEDS ?=

.PHONY: all demo test soak bench lint unit sim drills packages build lab

all: build

## The whole story on this machine, in under a minute
demo: build
	./target/release/lockstep demo

## Everything that must hold: lint, unit and process tests, simulator, virtual machines
test: packages lab lint unit sim drills

## One drill at full count: make soak DRILL=name (make soak alone lists them)
soak: packages lab build
	tests/soak $(DRILL)

## Against the kernel's DRBD, in one boot of a virtual machine
bench: packages lab build
	bench/vs-drbd

build: packages
	$(CARGO) build --release

lint: packages
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" $(CARGO) doc --workspace --no-deps --document-private-items --quiet

unit: packages build
	$(CARGO) test --workspace

sim: packages
	$(CARGO) build --release --quiet -p lockstep-sim
	target/release/lockstep-sim $(SEEDS)
	target/release/lockstep-sim --nodes 3 $(or $(SEEDS),--seeds-count 500)
	tests/sabotages

drills: build lab
	tests/drills

packages:
	@tests/packages

lab: packages
	@tests/lab/prepare
