# `make` lists the commands. Each one sets up what it needs first.
PYTHON ?= python3
PORT ?= 8888
bin := .venv/bin
envs := .venv .venv-colab .venv-bench
# Threads that wait for work spin briefly, then sleep. A step of the small network took
# 490 ms on a busy machine with OpenMP's own long spin and 77 ms with this; on a quiet
# one 13 ms with either, and 23 ms without any spin (OMP_WAIT_POLICY=PASSIVE).
export GOMP_SPINCOUNT ?= 10000
.DEFAULT_GOAL := help
.PHONY: help course deeper site translate lab test test-colab test-gpu bench format address

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | \
	  awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'

# An environment is made, or brought up to date, when its stamp is missing or is older
# than what it depends on. Its Python is gone when the system's Python was upgraded.
.venv/.complete: constraints.txt requirements-site.txt
.venv-colab/.complete: constraints-colab.txt
.venv-bench/.complete: constraints.txt requirements-bench.txt
$(envs:%=%/.complete): %/.complete: requirements.txt requirements-test.txt %/bin/python
	@$(PYTHON) tools/setup.py $@ $(filter %.txt,$^)
$(envs:%=%/bin/python): ;

# What the lessons train is small: more threads gain little, and a core that others use
# holds all of them up (lesson 05: 317 s with four threads on four cores, quiet 50 s).
course deeper: export OMP_NUM_THREADS ?= 2
course: .venv/.complete ## run every core lesson, make pages in build/site/
	@$(bin)/python -m tools.course

deeper: .venv/.complete ## the same for the deeper lessons, which are optional
	@$(bin)/python -m tools.course deeper

site: .venv/.complete ## pages of all lessons as stored, in build/site/
	@$(bin)/python -m tools.site

translate: .venv/.complete ## merge what changed into locale/, write the Korean edition
	@$(bin)/python -m tools.translate

# On the PATH: what `!` and the terminal start comes from this environment too.
lab: .venv/.complete ## open JupyterLab on the README and its lessons (PORT=8888)
	@PATH="$(CURDIR)/$(bin):$$PATH" $(bin)/python -m jupyterlab --port $(PORT) \
	  --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/README.md \
	  --LabApp.app_settings_dir=tools/lab $(if $(filter 0,$(shell id -u)),--allow-root)

# One thread each: the workers share the cores. No test waits for half a gigabyte of
# pretrained weights. The stored outputs are a CPU's.
test test-colab: export OMP_NUM_THREADS = 1
test test-colab test-gpu: export COURSE_OFFLINE = 1
test test-colab: export CUDA_VISIBLE_DEVICES =
test: .venv/.complete ## all checks: ruff, notebooks clean, helpers, every lesson's outputs
	@echo "On the CPU: a GPU is hidden from these tests (make test-gpu uses it)."
	$(bin)/python -m ruff check .
	$(bin)/python -m ruff format --check .
	$(bin)/python -m tools.notebooks check
	$(bin)/python -m pytest -n auto

test-colab: .venv-colab/.complete ## tests and lessons on Colab's own versions
	@echo "On the CPU: a GPU is hidden from these tests (make test-gpu uses it)."
	.venv-colab/bin/python -m pytest -n auto

test-gpu: .venv/.complete ## run the lessons on this machine's GPUs, outputs not compared
	@$(bin)/python -c "import sys, torch; n = torch.cuda.device_count(); \
	  print(n, 'GPUs'); sys.exit(not n and 'PyTorch sees no GPU here.')"
	$(bin)/python -m pytest --nbval-lax notebooks

bench: .venv-bench/.complete ## measure everything (or: make bench-summary), write benchmarks/results.md
	@.venv-bench/bin/python -m benchmarks

bench-%: .venv-bench/.complete
	@.venv-bench/bin/python -m benchmarks $*

format: .venv/.complete ## format the code, and clean the notebooks
	$(bin)/python -m ruff check --fix .
	$(bin)/python -m ruff format .
	$(bin)/python -m tools.notebooks clean

address: .venv/.complete ## carry your repository's address everywhere (URL=https://...)
	@$(bin)/python -m tools.address $(URL)
