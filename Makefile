# What people run. Every target installs what it needs that is missing (Debian
# packages, npm packages) and nothing else.

.PHONY: run test lint test-rust test-e2e soak clean help
.DEFAULT_GOAL := help

as_root := $(if $(filter 0,$(shell id -u)),,sudo)
export DEBIAN_FRONTEND := noninteractive

# $(call need,COMMAND-OR-FILE,PACKAGES): installs PACKAGES unless COMMAND is there.
need = @command -v $(1) >/dev/null || { echo "installing $(2)"; $(as_root) apt-get update -qq && \
	$(as_root) apt-get install -y -qq --no-install-recommends $(2) >/dev/null; }

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

run: src/dev/node_modules ## Run the development mode: no broker, page at http://localhost:3001/
	cargo run --locked -- dev

test: lint test-rust test-e2e ## Run every check and test

lint: ## Formatting and lints, warnings denied
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --quiet

test-rust: rabbitmq ## Unit tests, and integration tests against a private RabbitMQ
	RUST_TEST_THREADS=2 cargo test --locked

test-e2e: rabbitmq chromium src/dev/node_modules tests/node_modules ## End-to-end tests with the real socket.io-client and Chromium
	cargo build --locked
	cd tests && node --test e2e/*.test.mjs

SOAK_MINUTES ?= 10
SOAK_CONNECTS ?= 100000
soak: rabbitmq src/dev/node_modules tests/node_modules ## The long runs: clients that come and go (SOAK_CONNECTS=100000); churn, broker kills, gateway restarts (SOAK_MINUTES=10)
	cargo build --locked
	cd tests && SOAK_CONNECTS=$(SOAK_CONNECTS) SOAK_MINUTES=$(SOAK_MINUTES) node --test soak.mjs

.PHONY: npm rabbitmq chromium
npm:
	$(call need,npm,npm)

# Its system service is never used; the tests start their own.
rabbitmq:
	$(call need,/usr/lib/rabbitmq/bin/rabbitmq-server,rabbitmq-server)

chromium:
	$(call need,chromium,chromium)

%/node_modules: %/package-lock.json | npm
	cd $* && npm ci --silent
	touch $@

clean: ## Remove what was built and installed here
	cargo clean
	rm -rf src/dev/node_modules tests/node_modules
