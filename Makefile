# All the set-up that a Debian or Ubuntu machine with Python >= 3.11 needs is one of these targets.

python := .venv/bin/python
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-vllm test-ray lint clean

help:
	@echo "make demo    train, evaluate and replay an agent; ends with runs/demo/report.html"
	@echo "make test    run the tests"
	@echo "make test-vllm  install vLLM's CPU build beside, train through it (3 GB, 15 minutes)"
	@echo "make test-ray   install Ray, run on a cluster of processes (245 MB, minutes)"
	@echo "make lint    check style, formatting and types"
	@echo "make clean   remove .venv and caches; runs/ stays"

setup:
	@bash scripts/setup.sh

demo: setup
	@$(python) scripts/demo.py

# Two workers side by side; what fails beside the other one has to pass alone.
test: setup
	@export OMP_NUM_THREADS=1; $(python) -m pytest -q -n 2 --dist loadgroup || { \
		echo "what failed, once more and alone:"; \
		$(python) -m pytest -q --last-failed --last-failed-no-failures none; }

test-vllm: setup
	@bash scripts/test_vllm.sh

test-ray: setup
	@$(python) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray]'
	@TURNWISE_RAY_TESTS=1 OMP_NUM_THREADS=1 $(python) -m pytest -q tests/test_ray.py

lint: setup
	@$(python) -m ruff check .
	@$(python) -m ruff format --check .
	@mkdir -p .mypy_cache && ln -sfn .. .mypy_cache/turnwise
	@$(python) -m mypy

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
