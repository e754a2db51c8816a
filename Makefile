# make train      a language model from nothing: installs, makes the text, trains, evaluates
# make test       what every change must pass
# make test-long  every fault many times, into results/faults.json
# make setup      the installs alone: .venv/ with all that train and test need

PYTHON ?= python3

train: .venv/runtime
	.venv/bin/python train.py config/toy.py
	.venv/bin/python evaluate.py out/toy

test: .venv/development
	.venv/bin/python -m pytest -q

test-long: .venv/development
	.venv/bin/python -m pytest -q --long

setup: .venv/development

.venv/runtime: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -q -r requirements.txt
	touch $@

.venv/development: .venv/runtime requirements-dev.txt
	.venv/bin/python -m pip install -q -r requirements-dev.txt
	touch $@

.PHONY: train test test-long setup
