# Both commands work from a fresh clone: they set up what they need, once.
#   make demo    trains a small network by local learning and by backpropagation, and compares them (3 minutes on 2 cores)
#   make test    the whole check, as CI runs it
# VENV=dir is where `make demo` has its environment; PYTHON=python3.12 chooses the interpreter.

VENV ?= .venv

.PHONY: help demo test clean

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

demo:
	@.ci/env "$(VENV)" train
	@"$(VENV)/bin/localize-cli" demo

test:
	@.ci/run

clean:
	rm -rf build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
