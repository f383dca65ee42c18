PYTHON ?= python3
STORE ?= sqlite
MINUTES ?= 10
SEED ?=
CELERIES := 5.5 5.6 5.7

# What the tests of the promises note down for `make figures`.
FIGURES := $(CURDIR)/.cache/figures.jsonl

# Most tests wait most of the time. Whole files go to one worker each, which has servers of its own.
SIDE_BY_SIDE := -n 3 --dist loadfile

export PYTHON
# Where .ci/servers.sh puts what the system has no package of.
export PATH := $(PATH):$(CURDIR)/.servers/bin

# The workers must find the same tests in the same order, and pytest-celery takes some of its own out of sets.
test long figures $(CELERIES:%=matrix-%): export PYTHONHASHSEED := 0

.PHONY: help demo simulate test long figures chaos soak lint types matrix bench servers clean $(CELERIES:%=matrix-%)

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

demo: .venv/.all ## several beats share one schedule, and one is killed; STORE=sqlite (default), redis+zset, redis+scan, etcd or consul
	@[ "$(STORE)" = sqlite ] || .ci/servers.sh "$(STORE)"
	@exec .venv/bin/python -m example_project.demo --store "$(STORE)"

test: .venv/.dev servers ## run the tests against real servers; ARGS="-k words" to choose
	@exec .venv/bin/pytest $(SIDE_BY_SIDE) $(ARGS)

long: .venv/.dev servers ## run the tests that take minutes each: a thousand kills, and brokers that die under bursts
	@exec .venv/bin/pytest -m long $(ARGS)

figures: .venv/.dev servers ## measure what is promised on every store, for docs/guarantees.md; ARGS=--last-failed to try again and go on
	@mkdir -p .cache
	@$(if $(ARGS),,rm -f $(FIGURES))
	@FIGURES=$(FIGURES) .venv/bin/pytest $(SIDE_BY_SIDE) tests/acceptance tests/scheduler/test_promises*.py $(ARGS)
	@FIGURES=$(FIGURES) .venv/bin/pytest -m long tests/same_redis/test_kills.py
	@exec .venv/bin/python -m tests.figures $(FIGURES)

chaos: .venv/.dev servers ## hurt beats, stores and brokers at random; MINUTES=10 (default), SEED=... to do the same again
	@exec .venv/bin/python -m tests.chaos --minutes "$(MINUTES)" --seed "$(SEED)" --report docs/chaos.md

soak: .venv/.dev servers ## look for what grows in beats that live long; MINUTES=10 (default)
	@exec .venv/bin/python -m tests.chaos.soak --minutes "$(MINUTES)" --report docs/soak.md

simulate: .venv/.dev ## let simulated clusters live under faults; MINUTES=10 (default), SEED=0 to begin there
	@exec .venv/bin/python -m tests.simulation --minutes "$(MINUTES)" --seed "$(or $(SEED),0)" --jobs "$$(nproc)"

lint: .venv/.dev ## check style and format
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .

types: .venv/.dev ## check types
	@exec .venv/bin/mypy

matrix: $(CELERIES:%=matrix-%) ## run the tests of the scheduler, and of what it sends, on each Celery that is supported

$(CELERIES:%=matrix-%): matrix-%: .venv-celery-%/.dev servers
	@echo "Celery $*"
	@exec .venv-celery-$*/bin/pytest $(SIDE_BY_SIDE) tests/scheduler tests/same_redis $(ARGS)

bench: .venv-bench/.peers servers ## measure beside the peers; PARTS="burst idle", RUNS=3, SIZES="1000 10000", QUICK=1
	@exec .venv-bench/bin/python -m benchmarks $(PARTS) $(RUNS:%=--runs %) $(if $(SIZES),--sizes $(SIZES)) $(QUICK:1=--quick)

servers: ## get what the tests need: Redis, Valkey, etcd, RabbitMQ, Consul, libfaketime
	@.ci/servers.sh

clean: ## remove what these commands have made
	rm -rf .venv .venv-bench .venv-celery-* .servers .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp of an environment: what is installed is what pyproject.toml asks for.
.venv/.all .venv/.dev: .venv/.%: pyproject.toml
	@.ci/venv.sh .venv $*
	@touch $@

.venv-bench/.peers: pyproject.toml benchmarks/requirements.txt
	@.ci/venv.sh .venv-bench all -r benchmarks/requirements.txt
	@touch $@

$(CELERIES:%=.venv-celery-%/.dev): .venv-celery-%/.dev: pyproject.toml
	@.ci/venv.sh .venv-celery-$* dev "celery==$*.*"
	@touch $@
