# make train      a language model from nothing: installs, makes the text, trains, evaluates
# make test       what every change must pass
# make test-long  every fault many times, into results/faults.json
# make setup      the installs alone: .venv/ with all that train and test need
# make gpu        the tests, then every benchmark, on the NVIDIA GPU that is there, in some 20 minutes: installs
#                 nothing, so PYTHON=... has to have pytest and what is in requirements.txt; or a part of it:
#                 make gpu-test, gpu-kernels, gpu-minrnn, gpu-train, gpu-generate, gpu-score

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

GPU_PARTS = gpu-kernels gpu-minrnn gpu-train gpu-generate gpu-score

gpu:
	$(MAKE) --keep-going gpu-test $(GPU_PARTS)

gpu-test:
	$(PYTHON) -m pytest -q

gpu-train: SIZES = --d_model=1024 --n_layer=24 --n_head=8 --d_mlp=2816 --vocab_size=32768 \
	--shapes="32x512 8x2048" --models="HGRN2,minGRU,our Llama,transformers Llama"
gpu-train gpu-generate: SIZES += --dtype=bfloat16
gpu-score: SIZES = --pairs=toyland

$(GPU_PARTS): gpu-%:
	$(PYTHON) bench.py $* --device=cuda $(SIZES)

.PHONY: train test test-long setup gpu gpu-test $(GPU_PARTS)
