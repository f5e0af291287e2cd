SHELL := /bin/bash
ACTIVATE := source .venv/bin/activate

.PHONY: help install quickstart test test-quick bench lint docs docs-pages slurm-up slurm-down clean

help: ## what each target does
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 20
	@echo "An existing environment: make install PYTHON=... TORCH=... HOROVOD_GPU_OPERATIONS=NCCL (docs/installation.md)"

install: ## .venv with torch, MPI, Horovod and this package; what is there already is kept
	@tools/install.sh

EXPERIMENTS := bsp-iid bsp-one-label fedavg-iid fedavg-one-label
SYNC_bsp := {kind: bsp}
SYNC_fedavg := {kind: fedavg, local_epochs: 1}
PARTITION_iid := {kind: iid}
PARTITION_one-label := {kind: labels_per_client, labels: 1}

quickstart: install ## trains digits on two ranks, synchronously and federated, and prints the table
	@$(ACTIVATE) && set -e; rm -rf runs/quickstart; \
	$(foreach experiment,$(EXPERIMENTS),$(call train,$(experiment),$(firstword $(subst -, ,$(experiment))));) \
	hpclbfl report runs/quickstart

# train(experiment, synchroniser)
define train
hpclbfl launch -np 2 jobs/quickstart.yaml 'sync=$(SYNC_$(2))' 'partition=$(PARTITION_$(patsubst $(2)-%,%,$(1)))' \
	--run-dir runs/quickstart/runs/$(1)
endef

test-quick: install ## in two minutes: the tests that start no ranks and no Slurm, without the slow ones and without lint
	@$(ACTIVATE) && HPCLBFL_FUZZ_S=0.3 pytest -q --numprocesses 2 --dist loadfile -m "not mpi and not slurm and not slow"

test: install lint ## lint, then all tests: two at a time, but for those that measure times
	@$(ACTIVATE) && set -e; \
	pytest --numprocesses 2 --dist loadfile -m "not mpi and not slurm"; \
	pytest --numprocesses 2 --dist loadfile -m "(mpi or slurm) and not alone"; \
	pytest -m "(mpi or slurm) and alone"

BENCHMARKS := comm step federated scaler input log

bench: install ## side by side with its peers: communication, a step, a round, the scaler, input, log; into runs/bench
	@$(ACTIVATE) && set -e; $(foreach name,$(BENCHMARKS),hpclbfl bench $(name);)

lint: install ## ruff and mypy
	@$(ACTIVATE) && ruff check . && ruff format --check . && mypy -p hpclbfl -p tools

docs-pages: install ## writes what docs/ takes from the source anew: keys, commands, columns, components
	@$(ACTIVATE) && python -m tools.docs

docs: docs-pages ## the documentation as a site, build/site; links are checked, and reading it needs no network
	@tools/install.sh docs && $(ACTIVATE) && NO_MKDOCS_2_WARNING=1 mkdocs build --strict \
		&& python -m tools.docs check-site build/site
	@echo build/site/index.html

slurm-up: install ## starts a temporary Slurm of two nodes on this machine; as root, installs slurm-wlm if it is missing
	@$(ACTIVATE) && python -m tests.devcluster up

slurm-down: install ## stops it and its jobs
	@$(ACTIVATE) && python -m tests.devcluster down

clean: ## removes .venv and caches; runs and the built Horovod wheel stay
	rm -rf .venv *.egg-info build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find hpclbfl tests -name __pycache__ -type d -prune -exec rm -rf {} +
