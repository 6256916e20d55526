# `make` lists the commands. Each one sets up what it needs first (tools/setup.py).
PYTHON ?= python3
PORT ?= 8888
env := .venv
bin := $(env)/bin
# Threads that wait for work spin briefly, then sleep. A step of the small network took
# 490 ms on a busy machine with OpenMP's own long spin and 77 ms with this; on a quiet
# one 13 ms with either, and 23 ms without any spin (OMP_WAIT_POLICY=PASSIVE).
export GOMP_SPINCOUNT ?= 10000
.DEFAULT_GOAL := help
.PHONY: help setup setup-colab setup-bench bench course lab test test-colab test-browser format address

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | \
	  awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: ## the environment .venv, complete and up to date (the others do it first)
	@$(PYTHON) tools/setup.py $(env) constraints.txt

setup-colab: ## the same for .venv-colab, with the versions that Colab has
	@$(PYTHON) tools/setup.py .venv-colab constraints-colab.txt

# What the lessons train is small: more threads gain little, and a core that others use
# holds all of them up (lesson 05: 317 s with four threads on four cores, quiet 50 s).
course: export OMP_NUM_THREADS ?= 2
course: setup ## run every lesson; pages and executed notebooks go to build/
	@$(bin)/python -m tools.course

lab: setup ## open JupyterLab on the lessons (PORT=8888)
	@$(bin)/jupyter lab --port $(PORT) --ServerApp.root_dir=. \
	  --LabApp.default_url=/lab/tree/notebooks $(if $(filter 0,$(shell id -u)),--allow-root)

# One thread each: the workers share the cores.
test test-colab: export OMP_NUM_THREADS = 1
# No test waits for half a gigabyte of pretrained weights.
test test-colab: export COURSE_OFFLINE = 1

test: setup ## all checks: ruff, notebooks clean, helpers, every lesson's outputs
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/python -m tools.notebooks check
	$(bin)/python -m pytest -n auto

test-colab: setup-colab ## the helpers' tests and the lessons on Colab's own versions
	.venv-colab/bin/python -m pytest -n auto

test-browser: setup ## every lesson in a real JupyterLab, by headless Chromium
	@$(bin)/python -m tools.browser

setup-bench: ## the same for .venv-bench, with what is measured beside the course
	@$(PYTHON) tools/setup.py .venv-bench constraints.txt requirements-bench.txt

bench: setup-bench ## measure everything (or: make bench-summary), write benchmarks/results.md
	@.venv-bench/bin/python -m benchmarks

bench-%: setup-bench
	@.venv-bench/bin/python -m benchmarks $*

format: setup ## format the code, and clean the notebooks
	$(bin)/ruff check --fix .
	$(bin)/ruff format .
	$(bin)/python -m tools.notebooks clean

address: setup ## carry the repository's address into all lessons (URL=https://...)
	@$(bin)/python -m tools.address $(URL)
