# Each command works from a fresh clone: it sets up what it needs, once.
#   make demo    compares local learning, backpropagation and checkpointing on a small network (minutes on 2 cores)
#   make test    the whole check, as CI runs it
#   make docs    builds the documentation site: open build/site/index.html
# VENV=dir is the environment of `make demo`; PYTHON=python3.12 chooses the interpreter.

VENV ?= .venv

.PHONY: help demo test docs clean

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

demo:
	@.ci/env "$(VENV)" train
	@"$(VENV)/bin/localize-cli" demo

test:
	@.ci/run

docs:
	@.ci/run docs

clean:
	rm -rf build dist *.egg-info .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
