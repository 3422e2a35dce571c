# From nothing but Python 3.11+, make and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# A good part of what tests do is waiting.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(8, 3 * (os.cpu_count() or 1) // 2))')
# Tests start some hundred processes, each of which would compile all of the package again.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test test-typescript check-typescript test-go check-go lint collected bench bench-check bench-peers bench-dashboard pictures prove soak mutants mutants-end-to-end prove-storage prove-cluster clean

demo: $(VENV)/.installed
	$(BIN)/broker demo

# What counts the work of single steps, or measures, runs by itself.
ALONE = tests/fairness tests/bench

test: $(VENV)/.installed-dev
	$(MAKE) --jobs 2 --output-sync collected lint check-typescript check-go
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(addprefix --ignore ,$(ALONE))
	$(BIN)/python -m pytest $(ALONE)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What pytest makes of the tests' sources it keeps: made once, and not by each of its processes at the same time. What is wrong they say.
collected: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest --collect-only --quiet >/dev/null || true

# All of the TypeScript client. Without Node it says so and is skipped; with REQUIRE_CLIENTS=1 it fails.
test-typescript: check-typescript
	$(BIN)/python -m pytest clients/typescript

# What pytest does not run of it: lint, types, and tests in its own language.
check-typescript: $(VENV)/.installed-dev
	@if $(BIN)/python -m clients.conformance.programs node 20.19 npm 9; then \
	    cd clients/typescript && { [ node_modules/.package-lock.json -nt package-lock.json ] || npm ci --ignore-scripts --silent; } && npm run --silent check; \
	elif [ "$${REQUIRE_CLIENTS:-}" = 1 ]; then exit 1; fi

# The same of the Go client.
test-go: check-go
	$(BIN)/python -m pytest clients/go

check-go: $(VENV)/.installed-dev
	@if $(BIN)/python -m clients.conformance.programs go 1.25; then clients/go/tests/check.sh; \
	elif [ "$${REQUIRE_CLIENTS:-}" = 1 ]; then exit 1; fi

# A short run of all scenarios: tables here, results and report in benchmarks/out.
bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks all --pin

# The proofs that `make test` runs in part, whole: a quarter of an hour at most. A line for each says what it has proved.
prove: $(VENV)/.installed-prove
	PYTHONPATH=tests $(BIN)/python -m proofs.whole

# A thousand connections that come and go for half an hour, and everything is counted: SECONDS=60 for less.
soak: $(VENV)/.installed-dev
	PYTHONPATH=tests:. $(BIN)/python -m proofs.soaking --seconds $(or $(SECONDS),1800)

# Makes the broker wrong by one small thing at a time: exits with 1 where the tests named for it do not find one. ONLY=log.
mutants: $(VENV)/.installed-dev
	PYTHONPATH=tests $(BIN)/python -m proofs.mutants.running --only "$(ONLY)"

# The same with mistakes that the state machine end to end is to find: half an hour. SHARD=1/4.
mutants-end-to-end: $(VENV)/.installed-dev
	PYTHONPATH=tests:. $(BIN)/python -m proofs.mutating --shard $(or $(SHARD),1/1) --only "$(ONLY)"

# Kills a broker with a log on disk twenty times in a stream of publishes, with either setting of storage.synchronous.
prove-storage: $(VENV)/.installed-dev
	BROKER_KILLS=20 $(BIN)/python -m pytest tests/cli/test_killed.py

# Many nodes under load, and what may befall them and their server, sixteen times each: three clusters side by side, since
# most of it is waiting. Under ten minutes on two cores, four of which are processor time; longer where these are crowded.
prove-cluster: $(VENV)/.installed-dev
	BROKER_CHAOS=16 BROKER_PROVE=1 $(BIN)/python -m pytest -n 3 --dist load --maxschedchunk 1 -o faulthandler_timeout=600 \
		tests/cli/test_cluster.py tests/cli/test_keeper_killed.py tests/keeper tests/log/test_valkey.py \
		tests/log/test_valkey_scripts.py tests/log/test_valkey_steps.py tests/access/test_claims.py tests/workers tests/test_joined.py

# The ratios that must hold: exits with 1 where one does not.
bench-check: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks check --pin

# What the bench compares the broker with, into ~/.cache/broker-bench (BROKER_BENCH_PEERS); says what is not possible.
bench-peers: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.peers.install

# The page of an account at 1000 events/s in a real browser: exits with 1 where a task is long, or the heap grows.
bench-dashboard: $(VENV)/.installed-browser
	$(BIN)/python -m benchmarks.dashboard

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --group dev
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --group bench
	touch $@

# What looks for bytes that no reader expects; where there is no wheel of it, the proofs say that it is not there.
$(VENV)/.installed-prove: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --only-binary atheris --group prove || echo "atheris could not be installed: make prove says which proofs it leaves out"
	touch $@

# A browser's driver, for tests/browser; the browser itself is Debian's chromium-headless-shell.
$(VENV)/.installed-browser: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --group browser
	touch $@

# Node and npm in the virtual environment, for machines that have none, or an old one.
$(VENV)/.installed-node: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --group node
	touch $@

# The pictures of the documentation, taken again in Debian's chromium-headless-shell.
pictures: $(VENV)/.installed-browser
	BROKER_PICTURES=1 $(BIN)/python -m pytest tests/browser -k picture

# Go, likewise.
$(VENV)/.installed-go: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --group go
	touch $@

clean:
	rm -rf clients/typescript/node_modules clients/typescript/dist
	rm -rf $(VENV) .cache .hypothesis .pytest_cache .mypy_cache .ruff_cache
