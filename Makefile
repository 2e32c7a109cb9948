# `make demo` and `make test` are all a newcomer needs; both set up their own environment first.
PYTHON ?= python3
DATA ?= ../shared/data
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test test-browser test-slow check fix fuzz fuzz-short bench lesions diffboost adapt doubt review house pictures docs notebooks clean

setup: $(READY)

# torch first and pinned: this release has a CPU build; a range would take the newest, with its CUDA packages.
$(READY): pyproject.toml hatch_build.py
	$(PYTHON) -c 'import sys; sys.exit("delineate needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/delineate demo -o demo

# The documents as a site in build/site, with the Python reference; a warning stops it.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The notebooks, run as they stand and stored with their pictures: minutes.
notebooks: $(READY)
	$(BIN)/python recipes/notebooks.py docs/notebooks/*.ipynb

test: $(READY)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m 'not slow and not browser'

# Wants Chromium or Chrome on the machine; SCREENSHOTS=folder keeps the pictures of the page.
test-browser: $(READY)
	$(BIN)/python -m pytest -q -m browser tests/browser

test-slow: $(READY)
	$(BIN)/python -m pytest -q -m slow

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(MAKE) test

fix: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Twenty minutes on two cores: a thousand odd and broken inputs to every command, a hundred kills, two writers at once.
# Ends with 1 if anything failed; python benchmarks/fuzz.py --repeat ID tries one again, --largest the largest scans.
# Half a minute of it: what CI runs beside the tests.
fuzz-short: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fuzz.py --inputs 40 --kills 4 --pairs 1 --seed 1 --result build/fuzz.json

fuzz: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fuzz.py --inputs 1000 --kills 100

bench: $(READY)
	$(BIN)/python benchmarks/cost.py

# Hours on two cores: findings of seven kinds, every system; then UniSegDiff's ablations and its paths.
lesions: $(READY)
	$(BIN)/python benchmarks/lesions.py --data $(DATA)
	$(BIN)/python benchmarks/unisegdiff.py --data $(DATA)
	$(BIN)/python benchmarks/paths.py --data $(DATA)

# An hour and a half on two cores: synthetic scans for three sets, 96 trainings with and without them, a grid.
diffboost: $(READY)
	$(BIN)/python benchmarks/diffboost.py --data $(DATA)

# Two hours on two cores: CT to MR by 1, 3, 5 and 8 scans, polyps under a bad lens, bias fields. Wants models of CT and
# those of benchmarks/lesions.py.
adapt: $(READY)
	$(BIN)/python benchmarks/adapt.py --data $(DATA)

# Hours on two cores: generators on nodules of four raters; then guarantees and calibration on CT.
doubt: $(READY)
	$(BIN)/python benchmarks/plural.py --data $(DATA) --seeds 0 1 2 --workers 2
	$(BIN)/python benchmarks/doubt.py --data $(DATA)

# Forty minutes on two cores: clicks and scribbles, waiting times on the review page, a DICOM series there and back; the
# server under load.
review: $(READY)
	$(BIN)/python benchmarks/marks.py --data $(DATA)
	$(BIN)/python benchmarks/review.py --data $(DATA)
	$(BIN)/python benchmarks/dicom_seg.py --data $(DATA)
	$(BIN)/python benchmarks/serve.py --parts small ct silent memory

house: $(READY)
	$(BIN)/python recipes/house.py --data $(DATA)
	$(BIN)/python recipes/house_synthesis.py --data $(DATA)
	$(BIN)/python recipes/house_marks.py --data $(DATA)

# A minute: the pictures of the documents that come from what ships and from benchmarks/results/. Look at what changed.
pictures: $(READY)
	$(BIN)/python recipes/pictures.py

clean:
	rm -rf .venv demo build dist .pytest_cache .ruff_cache
