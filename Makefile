# Every check, defined once: people, .ci/run and GitHub type these. All of them need an activated environment
# with the extra [dev]; `quick`, `test`, `dear` and `slow` need [test] alone.
.PHONY: help fix quick test dear slow check docs smoke nodes kernels ci bench release mutate chaos

help: ## this list
	@awk -F ':[^#]*## ' '/^[a-z]+:.*## / {printf "%-8s %s\n", $$1, $$2}' Makefile

fix: ## what ruff can repair, and the format
	ruff check --fix .
	ruff format .

QUICK = combiners gradients networks agents config device test_layout.py

quick: ## the mathematics, under forty seconds: what starts no environments
	pytest $(QUICK:%=tests/%)

test: ## the default suite, two to four minutes on two cores
	pytest

dear: ## the tests that take seconds each, about four minutes on two cores
	pytest -m 'dear and not slow and not gpu'

slow: ## the long tests: all 50 tasks, every method through a resumed run, a cluster of two nodes
	pytest -m 'slow and not gpu'

check: ## lint, format, types
	ruff check .
	ruff format --check .
	mypy

docs: ## the documentation site, strictly, in site/
	mkdocs build --strict --quiet

smoke: ## a short training on MT10, its evaluation, ten faults
	runs=$$(mktemp -d) && trap 'rm -rf "$$runs"' EXIT && \
	python scripts/train_mt10.py --method cagrad --preset debug --run-dir "$$runs/cagrad" && \
	python scripts/evaluate.py "$$runs/cagrad" --episodes 1 && \
	python scripts/chaos.py --faults 10 --methods cagrad famo --out "$$runs/chaos"

nodes: ## bounds on what updates launch on a GPU, two minutes; needs none
	pytest tests/scripts/test_nodes.py -m slow

kernels: ## kernels and host on all families of problems, up to 62 tasks, three minutes; needs no GPU
	pytest tests/combiners/solvers/test_kernels.py -m slow -k 'all_families or on_numpy'

ci: check docs dear smoke nodes kernels ## what must pass before a change lands, besides the default suite

bench: ## combiners and updates next to their peers, a few minutes
	python scripts/benchmark.py combiners --tasks 10 50
	python scripts/benchmark.py update --tasks 10 --rounds 7

release: test ci ## a wheel and an sdist in dist/, checked; tagging and uploading are left to a person
	rm -rf dist
	python -m build
	installed=$$(mktemp -d) && trap 'rm -rf "$$installed"' EXIT && \
	pip install --quiet --no-deps --target "$$installed" dist/*.whl && cd "$$installed" && \
	PYTHONPATH="$$installed" python -m mtrl train --preset mt10 --print-config

mutate: ## remove each protection of docs/reliability.md and see that its test fails
	python scripts/mutate.py

chaos: ## a hundred faults over ten methods, compared bit for bit with the undisturbed runs
	python scripts/chaos.py --faults 100
