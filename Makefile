# make demo, make demo-bert, make rehearse, make test: everything from a fresh clone, nothing twice.
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install test demo demo-bert rehearse lint clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

install: $(INSTALLED)  ## make .venv with all that the demo, the tests and the tools need

# The stamp is written last, so that an interrupted install starts again.
$(INSTALLED): setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "Python >= 3.10 is needed; name one: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --constraint constraints.txt --editable '.[hf,dev]'
	@touch $@

# A file's tests share what they have started; ranks wait for each other more than they compute.
test: install  ## run the whole test suite, two files at a time
	$(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile

demo: install  ## a run that grows and two fixed-size twins on a small corpus, then a report
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" bash examples/demo.sh quickstart "steps flops" \
		--train-tokenizer 1024 --append-eod

demo-bert: install  ## the same of a BERT: masked tokens and pairs of sentences
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" bash examples/demo.sh bert_quickstart steps \
		--train-tokenizer 4096 --split-sentences --tokenizer-model wordpiece

rehearse: install  ## the 7B example on 64 ranks without their GPUs (minutes)
	$(VENV)/bin/python tools/rehearse.py --config examples/gpt2_7b/run.yaml --world-size 64 \
		--ranks 0,63 --model.vocab_size 50257

lint: install  ## style, import directions, types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/mypy

clean:  ## remove build outputs and caches; .venv, runs/ and data/ stay
	rm -rf build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find megatron_grow tests tools examples -name __pycache__ -prune -exec rm -rf {} +
