# Everything from a fresh clone: `make demo` and `make test` each make .venv and install what they need.
#   make demo   train a small binary network on photos, convert it to packed bits, upscale with it   (demo/)
#   make test   the test suite
#   make docs   the site, from README, docs/ and the docstrings   (site/)
#   make lint   what ruff, clang-format and pyright complain of
#   make format ruff and clang-format lay out the sources
#   make clean  remove .venv and everything that the targets above made

PYTHON ?= $(shell for python in python3.11 python3.12 python3.10 python3; do \
	$$python -c 'import sys, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null \
	&& { echo $$python; break; }; done)
BIN := .venv/bin
INSTALLED := .venv/installed
C_FILES = $(shell git ls-files '*.c' '*.h')
# The tested versions are for Python 3.11; other versions resolve the ranges in pyproject.toml.
PINS = $(shell $(PYTHON) -c 'import sys; print("-c requirements.txt" if sys.version_info[:2] == (3, 11) else "")')

.PHONY: all demo test docs lint format clean
all: $(INSTALLED)

# torch comes first and build isolation is off, because basicsr's setup.py imports torch: isolated, pip would download a
# second torch for the build.
$(INSTALLED): setup.py pyproject.toml requirements.txt $(wildcard bam_plugin/*/csrc/*.[ch] bam_plugin/*/*/csrc/*.[ch]) bam_plugin/engine/csrc/build.py
	@test -n "$(PYTHON)" || { echo "Python 3.10, 3.11 or 3.12 with venv is needed; set PYTHON=/path/to/python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip setuptools wheel cython
	$(BIN)/python -m pip install -q $(PINS) torch torchvision numpy
	$(BIN)/python -m pip install -q $(PINS) --no-build-isolation -e '.[train,demo,dev,docs,onnx,video,serve,completion]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/python tools/demo.py

test: $(INSTALLED)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# The variable silences an advertisement of the theme.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(INSTALLED)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(C_FILES)
	$(BIN)/pyright

format: $(INSTALLED)
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_FILES)

clean:
	rm -rf .venv demo build site *.egg-info bam_plugin/engine/_kernels* bam_plugin/nn/fast/_training*
