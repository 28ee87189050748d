# make demo    set-up and the whole study on the embedded tiny world (CPU, offline)
# make test    set-up and all tests, two files at a time, in order: tests/workflow change what others read
#              those on a real SLURM by themselves
# make soak    the long tests, run before a release; what they gave is in docs/soak.md, reliability.md, statistics.md
# make bench   data at full size, plans, submission to SLURM, judging, statistics, training steps: seconds and memory, into
#              results/bench/
# make bench-gpu   training steps on a GPU (docs/performance.md)
# make lint    linters    make report, make dag    the demo's report and rule graph    make lock    write the pins anew
PYTHON ?= python3
BIN := .venv/bin
DEMO := --profile profiles/demo
RESULTS := results/demo
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: setup demo test soak bench bench-gpu lint report dag lock docs

setup: .venv/installed

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "trialign needs Python 3.11, not %d.%d: make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: setup
	snakemake $(DEMO) all
	@if [ ! -e $(RESULTS)/report.html ] || [ -n "$$(find $(RESULTS) -maxdepth 1 \( -name '*.csv' -o -name index.html \) -newer $(RESULTS)/report.html)" ]; \
	then $(MAKE) --no-print-directory dag report; fi
	trialign show $(RESULTS)

report: setup
	snakemake $(DEMO) --quiet all --report $(RESULTS)/report.html

dag: setup
	snakemake $(DEMO) --quiet all --rulegraph dot all | trialign rulegraph $(RESULTS)/rulegraph

test: setup
	pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore tests/slurm
	pytest -n 2 --dist loadfile tests/slurm

soak: setup
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements-soak.txt
	pytest -m soak -s tests

bench: demo
	python -m benchmarks.triples
	python -m benchmarks.overlap
	python -m benchmarks.plan
	python -m benchmarks.submission
	python -m benchmarks.judging
	python -m benchmarks.statistics
	python -m benchmarks.engine
	python -m benchmarks.demo_training

bench-gpu: setup
	python -m benchmarks.engine --device cuda

lint: setup
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow
	snakemake --lint

docs: setup
	trialign reference

lock: setup
	pip freeze --all --exclude pip --exclude-editable | sed 's/+cpu//' > requirements.lock
	trialign environment
