# The commands of this repository. Every target installs the packages that it needs and
# that are missing (of Debian, npm and cargo), and nothing else, and says so first.

.PHONY: run react test docs lint toolchain format clippy library rustdoc test-rust test-e2e test-topologies-lean test-topologies test-indirect chaos chaos-lean soak jitter fleet \
	presence bench bench-broker bench-quick plan proxies dashboard deploy otlp fuzz deny dependencies msrv clean help
.DEFAULT_GOAL := help

as_root := $(if $(filter 0,$(shell id -u)),,sudo)
export DEBIAN_FRONTEND := noninteractive

# Where cargo puts release builds.
release := $(abspath $(or $(CARGO_TARGET_DIR),target))/release

# $(call need,COMMAND-OR-FILE,PACKAGES): installs PACKAGES unless COMMAND exists.
need = @command -v $(1) >/dev/null || { $(as_root) apt-get update -qq && \
	echo "$(1) is missing: apt-get installs $(2), $$(apt-get install -s --no-install-recommends $(2) | grep -c ^Inst) packages in all" && \
	$(as_root) apt-get install -y -qq --no-install-recommends $(2) >/dev/null; }

# $(call need-cargo,COMMAND): the same for a command that is a crate.
need-cargo = @command -v $(1) >/dev/null || { echo "$(1) is missing: installing it with cargo"; cargo install --locked $(1); }

# What the development page embeds: one file, without npm.
client := src/cli/dev/socket.io.min.js

# The development mode does without the allocator, which takes a minute to compile.
without-jemalloc := --no-default-features --features cli

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

run: compiler $(client) ## Run the development mode: no broker, page at http://localhost:3001/ (PORT=)
	@test -e $(or $(CARGO_TARGET_DIR),target)/debug/chat3-gateway || echo "compiling $$(grep -c '^name' Cargo.lock) crates: a few minutes, this once"
	cargo run --locked $(without-jemalloc) -- dev

react: examples/react-chat/node_modules ## Run the React example at http://localhost:5173/, against a running `make run` (PORT= as for it)
	cd examples/react-chat && npm run dev

compiler:
	@command -v cargo >/dev/null || { echo "Rust is missing: get it from https://rustup.rs/, or take the container or the binary, see README.md" >&2; exit 1; }
	$(call need,cc,gcc libc6-dev)

$(client): src/cli/dev/package-lock.json | curl
	@src/cli/dev/fetch-client

# Every part runs even if an earlier one failed; the last line is the verdict.
parts := toolchain format clippy library rustdoc dependencies test-rust test-e2e test-topologies-lean chaos-lean
test: ## Run every check and test
	@failed=; for part in $(parts); do \
		begun=$$(date +%s); $(MAKE) --no-print-directory $$part || failed="$$failed $$part"; \
		echo "== $$part: $$(($$(date +%s) - begun)) s"; done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed"; exit 1; else echo "all parts passed"; fi

# What compiles.
clippy library rustdoc msrv test-rust test-e2e test-topologies-lean test-topologies test-indirect docs chaos-needs soak jitter bench-needs presence \
	proxies dashboard deploy otlp fuzz deny: compiler

lint: format clippy library rustdoc ## Formatting and lints, warnings denied

# rustup does not install the pinned compiler everywhere on its own.
toolchain:
	@rustc --version >/dev/null 2>&1 || rustup toolchain install

format:
	cargo fmt --check

# With `otlp`, which only adds a few lines.
clippy:
	cargo clippy --locked --all-targets --all-features -- -D warnings

# What a backend that embeds the service compiles, and the examples it copies; and what `make run` does.
library:
	cargo clippy --locked --lib --example embed --no-default-features -- -D warnings
	cargo clippy --locked --bin chat3-gateway $(without-jemalloc) -- -D warnings

rustdoc:
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --quiet

# As much of `make deny` as works without installing or downloading anything.
dependencies:
	@if ! command -v cargo-deny >/dev/null; then \
		echo "skipped: cargo-deny is not installed (make deny installs it)"; \
	elif [ -n "$$(ls "$${CARGO_HOME:-$$HOME/.cargo}/advisory-dbs" 2>/dev/null)" ]; then \
		cargo deny --locked --offline check; \
	else \
		echo "skipped: advisories, whose database is not on this machine (make deny fetches it)"; \
		cargo deny --locked check bans licenses sources; \
	fi

# The oldest compiler that Cargo.toml supports.
msrv: msrv := $(shell sed -n 's/^rust-version = "\(.*\)"$$/\1/p' Cargo.toml)
msrv: ## Compile with the oldest supported Rust, which rustup fetches
	rustup toolchain install --profile minimal $(msrv)
	cargo +$(msrv) check --locked --lib --bins --target-dir target/msrv

# Tests with RabbitMQ wait most of the time, so one more runs at once than there are cores.
test-rust: rabbitmq ## Unit tests, and integration tests against a private RabbitMQ
	RUST_TEST_THREADS=$$(($$(nproc) + 1)) cargo test --locked --no-fail-fast

# Suites wait most of the time, so one more runs at once than there are cores.
test-e2e: rabbitmq chromium openssl curl python3 $(client) tests/node_modules examples/react-chat/node_modules examples/node-reference/node_modules ## End-to-end tests with the real socket.io-client and Chromium
	cargo build --locked --bins --examples
	cd tests && node --test --test-concurrency=$$(($$(nproc) + 1)) e2e/*.test.mjs

# With the same targets everywhere, since other targets have other features, and all is compiled again.
# $(call both,COMMAND,COMMAND): the second one runs even if the first one fails.
both = failed=0; ($(1)) || failed=1; ($(2)) || failed=1; exit $$failed

# As many topologies at once as there are cores, like suites; each prints when it has ended.
# All of them run.
topologies := shared firehose stream
over-topologies = +$(MAKE) --no-print-directory --keep-going --jobs=$$(nproc) --output-sync=target $(addprefix $(1)-,$(topologies))

# The tests that differ most between topologies run with every `make test`; test-topologies
# runs all tests that concern the broker.
test-topologies-lean: rabbitmq tests/node_modules
	cargo build --locked --bins --examples
	cargo test --locked --test rabbitmq_service --no-run
	$(call over-topologies,broker-lean)

broker-lean-%: export RABBITMQ_TOPOLOGY = $*
broker-lean-%:
	@$(call both, \
		cd tests && node --test --test-name-pattern='killing the broker|operator deletes|two tenants|leaves and returns|acknowledged|without settings|permits some' \
			e2e/broker.test.mjs e2e/binding_keys.test.mjs e2e/delivery.test.mjs, \
		cargo test --locked --test rabbitmq_service -- a_subscribed a_second closing whatever_happens)

test-topologies: rabbitmq openssl $(client) tests/node_modules ## The suites that concern the broker, over shared queues, a firehose and a stream
	cargo build --locked --bins --examples
	cargo test --locked --test rabbitmq_service --no-run
	$(call over-topologies,broker)

broker-%: export RABBITMQ_TOPOLOGY = $*
broker-%:
	@$(call both, \
		RUST_TEST_THREADS=2 cargo test --locked --test rabbitmq_service, \
		cd tests && node --test e2e/broker.test.mjs e2e/binding_keys.test.mjs e2e/delivery.test.mjs e2e/faults.test.mjs e2e/lifecycle.test.mjs \
			e2e/recovery.test.mjs e2e/shutdown.test.mjs e2e/rabbitmq_security.test.mjs)

docs: tests/node_modules ## Write the lists of docs/CONFIGURATION.md from the code, and docs/DATA.md from the fixtures
	UPDATE_DOCS=1 cargo test --locked --quiet --test configuration_docs
	UPDATE_DOCS=1 node --test tests/e2e/data_docs.test.mjs
	UPDATE_DOCS=1 node --test tests/e2e/capacity.test.mjs
	UPDATE_DOCS=1 node --test --test-name-pattern='help texts' tests/e2e/drift.test.mjs

# The runs are scripts with a verdict of their own; node's test report means nothing there.
as-script = node --test-reporter=tap --test-reporter-destination=/dev/null
chaos-needs: rabbitmq haproxy tests/node_modules
	cargo build --locked --bins --examples

test-indirect: rabbitmq openssl $(client) tests/node_modules ## The suites that concern what sockets are sent, with events written by Socket.IO's tasks (DIRECT_WRITES=false)
	cargo build --locked --bins --examples
	cd tests && DIRECT_WRITES=false node --test --test-concurrency=$$(nproc) $(addprefix e2e/,$(addsuffix .test.mjs,delivery faults recovery shutdown upgrade anywhere security))

CHAOS_MINUTES ?= 10
chaos: chaos-needs ## Three RabbitMQ nodes, three gateways, HAProxy, 300 clients; something dies every few seconds (CHAOS_MINUTES=10 CHAOS_SEED=)
	cd tests && CHAOS_MINUTES=$(CHAOS_MINUTES) $(as-script) chaos.mjs

# A part of the gate: about three minutes in all.
chaos-lean: chaos-needs
	cd tests && CHAOS_MINUTES=2 CHAOS_CLIENTS=100 CHAOS_RATE=60 $(as-script) chaos.mjs

SOAK_MINUTES ?= 10
SOAK_CONNECTS ?= 100000
soak: rabbitmq $(client) tests/node_modules ## The long runs: clients that come and go (SOAK_CONNECTS=100000); churn, broker kills, gateway restarts (SOAK_MINUTES=10)
	cargo build --locked --bins --examples
	cd tests && SOAK_CONNECTS=$(SOAK_CONNECTS) SOAK_MINUTES=$(SOAK_MINUTES) node --test soak.mjs

jitter: rabbitmq $(client) tests/node_modules ## A thousand clients on a bad network, and what their recovery costs
	cargo build --locked --release
	cd tests && GATEWAY_BIN=$(release)/chat3-gateway node --test jitter.mjs

bench-run = cd tests && GATEWAY_BIN=$(release)/chat3-gateway $(as-script) bench/run.mjs
bench-needs: rabbitmq tests/node_modules examples/node-reference/node_modules
	cargo build --locked --release --bins --examples

bench: bench-needs ## Gateway, Node and the raw limit side by side; writes docs/BENCHMARKS.md (25 min; SERVERS= SCENARIOS= REPEATS=)
	$(bench-run) ../target/bench/results.json
	node tests/bench/report.mjs target/bench/results.json --write

bench-quick: bench-needs ## A short turn of each with 1,000 users; prints the tables
	$(bench-run) --quick ../target/bench/quick.json
	node tests/bench/report.mjs target/bench/quick.json

bench-broker: rabbitmq tests/node_modules ## What users and updates cost RabbitMQ, for the planner (5 min)
	cd tests && $(as-script) bench/broker.mjs bench/broker.json
	UPDATE_DOCS=1 node --test tests/e2e/capacity.test.mjs

# Node alone is needed.
plan: ## Topology, instances, nodes and memory for USERS= UPDATES= RABBITMQ= (SOCKETS= NODES= BYTES=)
	@node tests/bench/plan.mjs

fleet: bench-needs haproxy ## Restarts under load: three instances with 3,000 sockets, and one with 10,000; prints figures (FLEET_SCENARIOS= FLEET_TOPOLOGIES=)
	cd tests && GATEWAY_BIN=$(release)/chat3-gateway $(as-script) fleet.mjs

presence: rabbitmq tests/node_modules ## Presence of 10,000 users who come, lose their instance, leave and return at once; prints figures (PRESENCE_USERS=10000)
	cargo build --locked --release
	cd tests && GATEWAY_BIN=$(release)/chat3-gateway $(as-script) presence.mjs $(PRESENCE_USERS)

proxies: rabbitmq haproxy openssl curl tests/node_modules ## The examples of proxies with the real nginx, HAProxy and Caddy, and how soon clients are back when a gateway goes
	$(call need,/usr/sbin/nginx,nginx)
	$(call need,caddy,caddy)
	$(call need,/usr/sbin/ip,iproute2)
	cargo build --locked --bins --examples
	cd tests && node --test proxies.test.mjs
	@# In a network namespace of its own, so that addresses can go; without one it says that it skips.
	cd tests && alone='unshare --map-root-user --net' && { $$alone true 2>/dev/null || alone=; } && \
		$$alone sh -c 'ip link set lo up 2>/dev/null; exec node --test handover.test.mjs'

dashboard: rabbitmq chromium tests/node_modules ## Grafana's dashboard drawn from four minutes of load and trouble; writes docs/images/dashboard.png
	$(call need,prometheus,prometheus)
	cargo build --locked --bins --examples
	cd tests && $(as-script) dashboard.mjs

deploy: rabbitmq haproxy $(client) tests/node_modules ## The files of docker/: alerts and dashboard with the real Prometheus, HAProxy, the systemd unit, the manifests, containers with Podman
	$(call need,promtool,prometheus)
	$(call need,systemd-analyze,systemd)
	cargo build --locked --bins --examples
	cd tests && node --test deploy.test.mjs
	@# With Podman and Compose, if they are here; else it says what it lacks, and skips. The stand-in for images
	@# is made first: the namespaces of the rest have no network but their own.
	if [ "$$(id -u)" = 0 ] && command -v debootstrap >/dev/null; then tests/containers/base.sh target/containers/base; fi
	cd tests && alone=containers/alone.sh && { unshare --mount --net --pid --fork true 2>/dev/null || alone=; } && $$alone node --test containers.test.mjs

otlp: rabbitmq openssl tests/node_modules ## Spans over OTLP, as a collector receives them, with the cargo feature otlp
	cargo build --locked --features otlp --target-dir target/otlp
	cd tests && GATEWAY_BIN=$(CURDIR)/target/otlp/debug/chat3-gateway node --test otlp.test.mjs

FUZZ_SECONDS ?= 60
fuzz: ## Fuzz each target for a while, on a nightly compiler (FUZZ_SECONDS=60)
	$(call need-cargo,cargo-fuzz)
	set -e; cd fuzz; for target in $$(cargo +nightly fuzz list --fuzz-dir .); do \
		mkdir -p corpus/$$target; \
		cargo +nightly fuzz run --fuzz-dir . $$target corpus/$$target regressions/$$target -- -max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=4096; \
	done

# ADVISORY_DB=FOLDER: a clone of github.com/RustSec/advisory-db, where that site
# cannot be reached.
deny: ## Check the dependencies for advisories, licences and sources (ADVISORY_DB=folder)
	$(call need-cargo,cargo-deny)
	$(if $(ADVISORY_DB),GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0='url.$(ADVISORY_DB).insteadOf' \
		GIT_CONFIG_VALUE_0=https://github.com/RustSec/advisory-db) cargo deny --locked check

.PHONY: bench-needs chaos-needs compiler npm rabbitmq haproxy chromium openssl curl python3
# The node of some distributions is too old for the tests and Vite.
npm:
	$(call need,npm,npm)
	@node -e 'var v = process.versions.node.split(".").map(Number); process.exit(v[0] > 18 || (v[0] === 18 && v[1] >= 19) ? 0 : 1)' || \
		{ echo "Node $$(node --version) is too old: 18.19 or later is needed" >&2; exit 1; }

# The system service is never used; the tests start private brokers.
rabbitmq:
	$(call need,/usr/lib/rabbitmq/bin/rabbitmq-server,rabbitmq-server)

python3:
	$(call need,python3,python3-minimal)

openssl:
	$(call need,openssl,openssl)

curl:
	$(call need,curl,curl ca-certificates)

haproxy:
	$(call need,/usr/sbin/haproxy,haproxy)

chromium:
	$(call need,chromium,chromium)

%/node_modules: %/package-lock.json | npm
	@echo "installing the npm packages of $*/package-lock.json"
	cd $* && npm ci --silent
	touch $@

clean: ## Remove everything that was built and installed here
	cargo clean
	rm -rf $(client) tests/node_modules examples/node-reference/node_modules examples/react-chat/node_modules examples/react-chat/dist
