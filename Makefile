# Needs python3 (3.11 to 3.13) with venv, and make: apt-get install python3 python3-venv make
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
FLOORS = .venv-floors
# More arguments for pip: PIP_ARGS="--index-url ..." chooses another build of torch, for instance.
PIP = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS)
# Processes that run the tests of `make test`. Each takes about 1 GiB; two are right for two cores.
WORKERS ?= 2
SOURCES = setup.cfg pyproject.toml constraints.txt

# The first line of targets that read both corpora.
needs_data = @test -n "$(DATA)" || { echo 'error: make $@ needs DATA=FOLDER (with wikitext-mini/ and tinyshakespeare/)' >&2; exit 2; }

.PHONY: help demo install audit docs pictures test test-slow test-floors faults lint parity modern dynamic same-as speed gpu-check gpu-wheels clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

demo: $(VENV)/.installed ## train, evaluate and sample a small model: no download, two minutes on two cores
	$(BIN)/txl train experiment=demo

install: $(VENV)/.installed ## the environment in .venv

test: lint ## lint, then the fast tests
	$(BIN)/python -m pytest -q -n $(WORKERS) --no-loadscope-reorder

test-slow: $(VENV)/.installed-test ## the tests that take minutes
	$(BIN)/python -m pytest -q -m slow

test-floors: ## the fast tests with the lowest versions that setup.cfg allows, in .venv-floors (4 GB are downloaded once)
	test -x $(FLOORS)/bin/python || $(PYTHON) -m venv $(FLOORS)
	$(FLOORS)/bin/python tools/floors.py > $(FLOORS)/floors.txt
	$(FLOORS)/bin/python -m pip install --disable-pip-version-check -c $(FLOORS)/floors.txt $(PIP_ARGS) -e .[test]
	$(FLOORS)/bin/python -m pytest -q -n $(WORKERS) --no-loadscope-reorder

faults: $(VENV)/.installed-test ## everything that can go wrong under SLURM, on a private cluster: docs/results/faults.md
	TXL_REQUIRE_SLURM=1 TXL_FAULTS_TABLE=docs/results/faults.md $(BIN)/python -m pytest -q -m "slow or not slow" \
		tests/launch -k "faults or submitting"

lint: $(VENV)/.installed-test ## ruff, mypy, hadolint, shellcheck: seconds, half a minute at the first time
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/shellcheck docker/*.sh .ci/run

parity: $(VENV)/.installed-test ## the reference's training curves: make parity DATA=folder with wikitext-mini/ and tinyshakespeare/
	$(needs_data)
	TXL_DATA=$(DATA) $(BIN)/python -m pytest -q -s -m slow tests/train/test_same_training.py
	$(BIN)/python -m tools.parity --data $(DATA)

modern: $(VENV)/.installed-test ## our recipe beside the published one, over seeds (hours): make modern DATA=as for parity (SEEDS=5)
	$(needs_data)
	$(BIN)/python -m tools.modern --data $(DATA) $(if $(SEEDS),--seeds $(SEEDS))

dynamic: $(VENV)/.installed-test ## evaluation that learns, over seeds (an hour with the trainings): make dynamic DATA=as for parity
	$(needs_data)
	$(BIN)/python -m tools.dynamic --data $(DATA) $(if $(SEEDS),--seeds $(SEEDS))

same-as: $(VENV)/.installed-test ## is everything computed as by another revision, bit by bit? make same-as REV=... DATA=as for parity
	@test -n "$(REV)" || { echo 'error: make same-as needs REV=REVISION' >&2; exit 2; }
	$(BIN)/python tools/same_as.py $(REV) $(if $(DATA),--data $(DATA))

speed: $(VENV)/.installed-test ## this tree and another revision in turn: make speed REV=... (ONLY="train resume")
	@test -n "$(REV)" || { echo 'error: make speed needs REV=REVISION' >&2; exit 2; }
	$(BIN)/python tools/speed.py $(REV) $(if $(ONLY),--only $(ONLY))

gpu-check: $(VENV)/.installed-test ## everything that needs a GPU, in nine minutes at most: docs/results/gpu.md
	$(BIN)/python tests/gpu_check.py

# The packages that an environment for torch may lack. The antlr4 runtime is published as source only.
gpu-wheels: $(BIN)/python ## what a machine with torch but without a network needs for `python3 tests/gpu_check.py`, in .whl
	rm -rf .whl && mkdir .whl
	$(BIN)/python -m pip download -q --no-deps --only-binary=:all: -c constraints.txt -d .whl \
		hydra-core omegaconf hydra-submitit-launcher submitit sacremoses
	$(BIN)/python -m pip wheel -q --no-deps -c constraints.txt -w .whl antlr4-python3-runtime

.PHONY: chaos fuzz long-run
chaos: $(VENV)/.installed-test ## kill tiny runs at every instant and file operation, cut the power, break disks: hours; goes on where it stopped
	$(BIN)/python -m tools.chaos $(CHAOS_ARGS)

fuzz: $(VENV)/.installed-test ## 20,000 command lines, 3,000 damaged files, 5,000 texts, every damage of every file: each answered in one short line; goes on where it stopped
	$(BIN)/python -m tools.fuzz $(FUZZ_ARGS)

long-run: $(VENV)/.installed-test ## 200,000 steps of a tiny model and a record of a million lines: memory, files, speed; goes on where it stopped
	$(BIN)/python -m tools.long_run

docs: $(VENV)/.installed-test ## the documentation as a site in build/site, every link checked
	$(BIN)/python tools/configuration_reference.py
	$(BIN)/python -m zensical build --clean --strict -f mkdocs.yml

pictures: $(VENV)/.installed-test ## the pictures of report pages in docs/: make pictures RUNS=FOLDER STUDY=FOLDER (needs chromium)
	$(BIN)/python -m tools.pictures $(if $(RUNS),--runs $(RUNS)) $(if $(STUDY),--study $(STUDY))

audit: $(VENV)/.installed-test ## known advisories about the versions in constraints.txt; says so if it cannot check
	$(BIN)/python tests/audit.py

clean: ## remove the environment and caches; runs and data stay
	rm -rf $(VENV) $(FLOORS) .whl build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
		echo 'error: needs Python 3.11, 3.12 or 3.13 as $(PYTHON); choose one with make PYTHON=python3.13' >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo 'error: $(PYTHON) cannot make environments; on Debian: apt-get install python3-venv' >&2; exit 1; }

$(VENV)/.installed: $(SOURCES) | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) -e .[test]
	@touch $@
