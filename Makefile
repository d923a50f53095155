# What people type most. Each target needs the environment of README's second command.
.PHONY: quick test check docs mutate chaos

QUICK = combiners gradients networks agents config device test_layout.py

quick: ## the mathematics, under forty seconds: what starts no environments
	pytest $(QUICK:%=tests/%) -m 'not slow and not gpu and not dear'

test: ## the default suite, under three minutes
	pytest

check: ## lint, format, types
	ruff check .
	ruff format --check .
	mypy

docs: ## the documentation site, strictly
	mkdocs build --strict

mutate: ## remove each protection of docs/reliability.md and see that its test fails
	python scripts/mutate.py

chaos: ## a hundred faults over ten methods, compared bit for bit with the undisturbed runs
	python scripts/chaos.py --faults 100
