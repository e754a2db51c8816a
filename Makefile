# make train      a language model from nothing: installs, makes the text, trains, evaluates, tells three stories
# make test       what every change must pass
# make test-long  every fault many times, into results/faults.json
# make babyhgrn   BabyHGRN's question: HGRN2 against Llama and with a teacher, from the text to the table. SCALE=small,
#                 a night of two CPU cores, on the *.train.txt.gz and *.dev.txt.gz in TEXT or, without any, on BabyLM's
#                 text, fetched; SCALE=tiny, an hour; SCALE=medium, the same text and half an hour of a GPU;
#                 SCALE=paper, four GPUs. Stopped at any moment, the same command resumes.
#                 EWoK is given to those who accept its terms; without it, name the tasks: see USAGE.md
# make setup      the installs alone: .venv/ with all that train and test need
# make gpu        the tests, then the benchmarks, on this machine's NVIDIA GPU, in some 20 minutes. Installs nothing:
#                 the Python that PYTHON names needs pytest, pytest-xdist and requirements.txt. Or a part of it:
#                 make gpu-test, gpu-kernels, gpu-minrnn, gpu-train, gpu-generate, gpu-score

PYTHON ?= python3

train: .venv/runtime
	.venv/bin/python train.py config/toy.py
	@$(MAKE) --no-print-directory --silent out/toy/results.json
	@echo; echo "Three stories that it tells:"; echo
	@.venv/bin/python sample.py out/toy --samples=3 --tokens=100
	@echo; echo "What it learned when: out/toy/learning_curve.svg. All scores: out/toy/results.json. Now try:"
	@echo '    .venv/bin/python sample.py out/toy --prompt="Lily"'
	@echo '    .venv/bin/python train.py config/toy.py --mixer=mingru --run=mingru'

out/toy/results.json: out/toy/checkpoint.pt
	.venv/bin/python evaluate.py out/toy

test: .venv/development
	.venv/bin/python -m pytest -q -n logical --maxprocesses=8 --dist=loadfile

test-long: .venv/development
	.venv/bin/python -m pytest -q --long

setup: .venv/development

SCALE ?= small
TEXT ?= $(or $(NANORNN_DATA),data)/corpus
BABYLM = $(firstword $(wildcard $(NANORNN_DATA)/babylm-10m) data/babylm-10m)
LAUNCH_paper = .venv/bin/torchrun --nproc_per_node=4
MORE_small = config/babyhgrn_mixers.py config/babyhgrn_taught.py
NEEDS_small = out/english_3gram/checkpoint.pt
NEEDS_tiny = data/english/meta.json
NEEDS_medium = data/english/meta.json
SETS = blimp supplement ewok bear
SETS_small = entity_tracking glue

babyhgrn: config/babyhgrn_$(SCALE).py .venv/runtime $(NEEDS_$(SCALE))
	for set in $(SETS) $(SETS_$(SCALE)); do .venv/bin/python data.py $$set || [ $$set = ewok ] || exit; done
	for file in $< $(MORE_$(SCALE)); do \
		$(or $(LAUNCH_$(SCALE)),.venv/bin/python) compare.py $$file $(TASKS:%=--tasks=%) || exit; done

out/english_3gram/checkpoint.pt: data/english/meta.json
	.venv/bin/python -m tools.ngram english --order=3

data/english/meta.json: | .venv/runtime
ifneq ($(wildcard $(TEXT)/*.train.txt.gz),)
	.venv/bin/python data.py text english "$(TEXT)/*.train.txt.gz" --val="$(TEXT)/*.dev.txt.gz" --vocab_size=8000
else
	.venv/bin/python data.py babylm-10m
	.venv/bin/python data.py text english "$(BABYLM)/*.train.txt" --vocab_size=8000 --longest=20
endif

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

KERNEL_TESTS = $(wildcard tests/test_triton*.py) tests/test_kernels.py

gpu-test:
	$(PYTHON) -m pytest -q -x $(KERNEL_TESTS)
	$(PYTHON) -m pytest -q -n logical --maxprocesses=8 --dist=loadfile $(KERNEL_TESTS:%=--ignore=%)

gpu-train: SIZES = --d_model=1024 --n_layer=24 --n_head=8 --d_mlp=2816 --vocab_size=32768 \
	--shapes="32x512 8x2048" --models="HGRN2,minGRU,our Llama,transformers Llama,fla HGRN2"
gpu-train gpu-generate: SIZES += --dtype=bfloat16
gpu-score: SIZES = --pairs=toyland

$(GPU_PARTS): gpu-%:
	$(PYTHON) -m tools.bench $* --device=cuda $(SIZES)

.PHONY: train test test-long babyhgrn setup gpu gpu-test $(GPU_PARTS)
