# What people do here. `make help` lists it; CI calls the same targets (.ci/run).

PREFIX     ?= /usr/local
DESTDIR    ?=
SYSCONFDIR ?= /etc
UNITDIR    ?= $(PREFIX)/lib/systemd/system
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
BINARY     := $(TARGET_DIR)/release/trilane
# CI must build what was committed; a person may have a dependency under change.
LOCKED     := $(if $(CI),--locked)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run build test chaos fuzz lint bench bench-quick bench-mssql bench-peers install clean

help: ## lists what can be done here
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## installs what is missing, builds, serves on 127.0.0.1:8080 and shows two sample jobs on their way
	@tests/support/packages.sh run
	cargo build --release $(LOCKED)
	@deploy/demo.sh $(BINARY)

build: ## builds target/release/trilane
	@tests/support/packages.sh build
	cargo build --release $(LOCKED)

test: ## runs every test, on a PostgreSQL and a Redis of its own; ARGS="--test http" goes to cargo test
	@tests/support/packages.sh test
	tests/support/services.sh cargo test --features failpoints $(LOCKED) $(ARGS)

chaos: ## MINUTES=10 of random faults for each database, then all others; tables at the end; SEED=… repeats, OLD=<commit> is upgraded
	@tests/support/packages.sh test
	MINUTES="$(MINUTES)" SEED="$(SEED)" OLD="$(OLD)" tests/support/services.sh tests/support/chaos.sh cargo test --features failpoints $(LOCKED)

fuzz: ## feeds what is read from outside with anything, each target for SECONDS=60; what crashed is below fuzz/artifacts
	@tests/support/packages.sh build
	@command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
	set -e; for target in $$(RUSTC_BOOTSTRAP=1 cargo fuzz list); do \
	  mkdir -p $(abspath $(TARGET_DIR))/fuzz-corpus/$$target; \
	  RUSTC_BOOTSTRAP=1 cargo fuzz run $$target $(abspath $(TARGET_DIR))/fuzz-corpus/$$target $(CURDIR)/fuzz/corpus/$$target -- \
	    -max_total_time=$(or $(SECONDS),60) -max_len=4096 -len_control=0 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1; \
	done

lint: ## checks format, clippy, dependencies and the project's own rules
	@tests/support/packages.sh build
	cargo fmt --all --check
	cargo clippy --workspace --all-targets $(LOCKED) -- -D warnings
	cargo clippy --workspace --all-targets --features failpoints $(LOCKED) -- -D warnings
	@tests/support/deny.sh
	cargo test $(LOCKED) --test tidy

bench: ## measures a release build on PostgreSQL with Redis, and on SQLite; ARGS="--only W1 --runs 1" narrows it
	@tests/support/packages.sh test
	tests/support/services.sh cargo bench --bench trilane $(LOCKED) -- $(ARGS)

bench-quick: ## runs every workload once and small, to see that the bench works; measures nothing
	@tests/support/packages.sh test
	tests/support/services.sh cargo bench --profile dev --features failpoints --bench trilane $(LOCKED) -- --quick

bench-mssql: ## measures W1 to W4 on the SQL Server of the ODBC connection string in TRILANE_TEST_MSSQL
	@test -n "$(TRILANE_TEST_MSSQL)" || { echo "bench-mssql: set TRILANE_TEST_MSSQL to an ODBC connection string" >&2; exit 1; }
	$(MAKE) bench ARGS="--store mssql --only W1 --only W2 --only W3 --only W4 $(ARGS)"

bench-peers: ## measures Trilane beside other systems, by the harness in the folder PEERS; ARGS="trilane-postgres pg-boss" narrows it
	@test -d "$(PEERS)/lib" || { echo "bench-peers: set PEERS to the folder of the harness (benches/peers.py says which)" >&2; exit 1; }
	@tests/support/packages.sh test
	cargo bench --bench trilane --no-run $(LOCKED)
	TRILANE_BENCH=$$(cargo bench --bench trilane --no-run --message-format=json $(LOCKED) 2>/dev/null | \
	  sed -n 's/.*"kind":\["bench"\].*"executable":"\([^"]*\)".*/\1/p') \
	  PEERS="$(PEERS)" python3 benches/peers.py $(ARGS)

install: ## installs the program, its systemd unit and its settings file under PREFIX, DESTDIR (after make build)
	@test -x $(BINARY) || { echo "install: $(BINARY) is missing; run make build first, as yourself" >&2; exit 1; }
	install -D -m 755 $(BINARY) $(DESTDIR)$(PREFIX)/bin/trilane
	install -d $(DESTDIR)$(UNITDIR)
	sed 's|/usr/local/bin/trilane|$(PREFIX)/bin/trilane|; s|/etc/trilane|$(SYSCONFDIR)/trilane|' \
	  deploy/trilane.service > $(DESTDIR)$(UNITDIR)/trilane.service
	chmod 644 $(DESTDIR)$(UNITDIR)/trilane.service
	test -e $(DESTDIR)$(SYSCONFDIR)/trilane/trilane.env || \
	  install -D -m 600 deploy/trilane.env $(DESTDIR)$(SYSCONFDIR)/trilane/trilane.env
	@echo "Settings: $(SYSCONFDIR)/trilane/trilane.env. Then: systemctl daemon-reload && systemctl enable --now trilane"

clean: ## removes what was built; ./data, the jobs of make run, stays
	cargo clean
