# `make` lists what can be run. The servers that tests need are installed by
# `make deps`, which `make test` runs first.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO ?= go
# On the few cores of a CI machine much of a test is waiting for a server, so
# one package more than cores is run at a time.
PROCS := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
P ?= $(shell echo $$(($(PROCS) + 1)))
PKG ?= ./...
SEEDS ?= 1000
FUZZTIME ?= 20s
SOURCE ?= postgres
MARKETING ?= postgres
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

LINT := $(GO) tool -modfile=internal/tools/lint/go.mod golangci-lint
SERVERS := $(GO) run ./internal/tools/testservers --

.PHONY: help
help: ## List what can be run
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

.PHONY: build
build: ## Build ./bin/lethe, static and reproducible (VERSION=v1.2.3)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/lethe ./cmd/lethe

.PHONY: deps
deps: ## Install the servers and tools that the tests need
	$(GO) run ./internal/tools/testdeps

.PHONY: test
test: deps ## Run every test under the race detector, on real servers (PKG=./...)
	$(GO) vet $(PKG)
	$(GO) test -run DoesNotAllocate ./schema ./internal/keys
	$(SERVERS) $(GO) test -race -timeout 15m -p $(P) $(PKG)

.PHONY: test-short
test-short: ## Run the quick tests without the race detector (PKG=./...)
	$(GO) test -short -timeout 5m $(PKG)

.PHONY: lint
lint: ## Lint with the pinned golangci-lint (the first build takes minutes)
	$(LINT) run

.PHONY: fmt
fmt: ## Format the code
	$(LINT) fmt

.PHONY: bench
bench: deps ## Measure against docs/BENCHMARKS.md
	$(GO) run ./internal/tools/bench

.PHONY: simulate
simulate: ## Run the simulation with many seeds (SEEDS=1000)
	$(GO) test ./internal/simulation -run Simulate -count=1 -timeout 0 -seeds $(SEEDS)

.PHONY: fuzz
fuzz: ## Fuzz every fuzz target for a while (FUZZTIME=20s PKG=./...)
	@for pkg in $$($(GO) list $(PKG)); do \
	  for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "== $$pkg $$target"; \
	    $(GO) test $$pkg -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME); \
	  done; \
	done

.PHONY: demo
demo: ## Try Lethe out, live in the terminal (SOURCE=postgres|mysql|mariadb MARKETING=...)
	@sh internal/tools/withgo.sh $(MAKE) --no-print-directory demo-run

.PHONY: demo-run
demo-run:
	@$(GO) run ./internal/tools/testdeps -only postgres,$(SOURCE),$(MARKETING)
	@$(MAKE) --no-print-directory build
	./bin/lethe demo --source $(SOURCE) --marketing $(MARKETING)

.PHONY: clean
clean: ## Remove what was built (the servers in the cache stay)
	rm -rf bin
