# `make` says what there is. Everything installs what it needs first (tools/setup.sh).
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test check fmt lint docker-lint bench oracle matrix extremes soak sim fuzz clean-tools

TOOLS := $(shell tools/setup.sh root)
# The programs of every major, for the service, the tests and the demo.
export LASTGOOD_PG_BIN_DIRS ?= $(TOOLS)/pg/18/bin:$(TOOLS)/pg/17/bin:$(TOOLS)/pg/16/bin:$(TOOLS)/pg/15/bin:$(TOOLS)/pg/14/bin:$(TOOLS)/pg/13/bin
BUILT := $(or $(CARGO_TARGET_DIR),target)
SEEDS ?= 100

help: ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | column -t -s "$$(printf '\t')"

demo: ## a shop, a disaster, the way back (KEEP=1 leaves it running)
	tools/setup.sh demo
	cargo build -p lastgood
	$(BUILT)/debug/lastgood demo $(if $(KEEP),--keep)

test: ## every test, on real PostgreSQL servers and a real S3 server
	tools/setup.sh test
	cargo build --workspace --bins --tests
	RUST_LIB_BACKTRACE=0 RUST_TEST_THREADS=$${RUST_TEST_THREADS:-6} tools/with-s3.sh cargo test --workspace

check: ## formatting and clippy, of the release build too, warnings are errors
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --release -p lastgood -- -D warnings

fmt: ## format
	cargo fmt --all

lint: check docker-lint ## check, and the files that are not Rust

docker-lint: ## the Dockerfile, the compose file and the shell scripts
	tools/setup.sh lint
	$(TOOLS)/lint/bin/hadolint docker/Dockerfile
	$(TOOLS)/lint/bin/shellcheck tools/*.sh .ci/run
	$(TOOLS)/lint/bin/yamllint -s -c docker/yamllint.yaml docker/compose.yaml
	$(TOOLS)/lint/bin/check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml

bench: ## capture and restore beside PostgreSQL's own tools; prints the table of BENCHMARKS.md
	tools/setup.sh pg 18
	$(if $(findstring $(or $(ONLY),peers),peers),tools/setup.sh peers)
	cargo build --release -p lastgood
	LASTGOOD_BIN=$(abspath $(BUILT))/release/lastgood cargo run -q -p lastgood-integration --example bench $(if $(ONLY),-- '$(ONLY)')

oracle: ## restores to random moments of random histories on all majors, SEEDS=n of them, two at a time
	tools/setup.sh test
	cargo build --workspace --bins --tests
	LASTGOOD_ORACLE_SEEDS=$(SEEDS) tools/with-s3.sh cargo test -p lastgood-integration --test it oracle::oracle -- --exact --nocapture

matrix: ## every major with every other, on each storage, with TLS or not, …: every two of these at least once; types and scenarios on every major; every step of the migrations
	tools/setup.sh test
	cargo build --workspace --bins --tests
	LASTGOOD_MATRIX=all LASTGOOD_MAJORS=all tools/with-s3.sh cargo test -p lastgood-integration --test it -- --nocapture matrix:: types:: scenarios:: s3:: migrations:: borrowed:: ddl::

extremes: ## values of 100 MB and rows of 300 MB, which `make test` has smaller
	tools/setup.sh test
	cargo build --workspace --bins --tests
	LASTGOOD_EXTREMES=full LASTGOOD_TEST_PATIENCE=1800 cargo test -p lastgood-integration --test it extremes:: -- --nocapture

soak: ## random faults and compared restores for MINUTES=n; memory and descriptors, as a curve, below target/soak
	tools/setup.sh test
	cargo build --workspace --bins --tests
	LASTGOOD_SOAK_MINUTES=$(or $(MINUTES),30) LASTGOOD_TEST_PATIENCE=600 tools/with-s3.sh cargo test -p lastgood-integration --test it soak::soak -- --exact --nocapture

sim: ## the capture loop against a simulated server and store, SEEDS=n crash schedules
	LASTGOOD_SIM_SEEDS=$(SEEDS) cargo test -p lastgood-engine sim -- --nocapture

fuzz: ## the readers of foreign bytes, FUZZ_CASES=n random inputs each
	PROPTEST_CASES=$(or $(FUZZ_CASES),100000) cargo test --release -p lastgood-proto -p lastgood-store

clean-tools: ## remove what tools/setup.sh installed below its folder
	rm -rf $(TOOLS)
