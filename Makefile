# Two commands on a fresh machine: `make quickstart` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
DEFINITION := pyproject.toml constraints.txt
RUN := runs/nft
SHAPED := lucidnft.flow,lucidnft.losses,lucidnft.advantages,lucidnft.records
RESTORED := restored
SAMPLE_PATH := from lucidnft.data.bundled import photograph_paths; print(*photograph_paths(["chelsea.png"]))

.PHONY: quickstart test check docs golden clean

quickstart: $(VENV)/.installed
	$(BIN)/python train.py --config configs/tiny/nft.yaml
	$(BIN)/python sample.py --input "$$($(BIN)/python -c '$(SAMPLE_PATH)')" \
		--output_dir $(RESTORED) --checkpoint $(RUN) --upscale 4 --seed 0
	@echo
	@echo "Report with curves, table and pictures:  $(CURDIR)/$(RUN)/report.html"
	@echo "Restored image:                          $(CURDIR)/$(RESTORED)/chelsea.png"

# Shape annotations are checked at every call here, and only here.  One process per core computes with one thread.
test: $(VENV)/.installed_dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal --jaxtyping-packages=$(SHAPED),beartype.beartype

check: $(VENV)/.installed_dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed_dev
	$(BIN)/mkdocs build --strict

golden: $(VENV)/.installed_dev
	$(BIN)/python -m tests.golden.export

clean:
	rm -rf site build dist *.egg-info

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

# The stamps say that this environment matches these files: an install that is up to date is skipped.
$(VENV)/.installed: $(DEFINITION) | $(BIN)/python
	$(PIP_INSTALL) -e '.[iqa]'
	touch $@

$(VENV)/.installed_dev: $(DEFINITION) | $(BIN)/python
	$(PIP_INSTALL) -e '.[iqa,clip,quantize,dev]'
	touch $@ $(VENV)/.installed
