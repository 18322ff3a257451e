# Every target sets itself up: a virtual environment in .venv with the pinned requirements.
PYTHON ?= python3
PY = .venv/bin/python

.PHONY: demo test lint bench gpu evidence clean

.venv/ready: requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet -r requirements.txt -r requirements-dev.txt
	@touch $@

demo: .venv/ready
	$(PY) bench/demo.py

test: .venv/ready lint
	$(PY) -m pytest tests

lint: .venv/ready
	.venv/bin/ruff check .

# The CPU benchmarks, half an hour alone on the machine. Two of them want data: TEXT names a folder of PubMed texts (see
# bench/tokenizer.py), QUESTIONS a file of prepare/qa.py's and TOKENIZER the folder that its tokens are counted with.
bench: .venv/ready
	$(PY) bench/train.py
	$(PY) bench/kills.py
	$(PY) bench/sample.py
	$(if $(QUESTIONS),$(PY) bench/qa.py --questions $(QUESTIONS) --tokenizer $(or $(TOKENIZER),data/tokenizer),@echo "bench/qa.py left out: make bench QUESTIONS=FILE TOKENIZER=FOLDER")
	$(if $(TEXT),$(PY) bench/tokenizer.py --text $(TEXT),@echo "bench/tokenizer.py left out: make bench TEXT=FOLDER")

# Every check that needs a GPU, within ten minutes, into results/ or the folder that GPU_OUT names;
# PY=python3 uses an environment that is already there
gpu: $(if $(filter .venv/%,$(PY)),.venv/ready)
	$(PY) bench/gpu.py

# Hours: a small model on real text against its untrained twin. ABSTRACTS is a file of structured abstracts, TEXTS the files
# to pretrain on, RIVAL the folder of a pretrained encoder (optional); the questions are those of data/qa
evidence: .venv/ready
	$(PY) bench/evidence.py --abstracts $(ABSTRACTS) --texts $(TEXTS) $(if $(RIVAL),--rival $(RIVAL))

clean:
	rm -rf .venv out data .pytest_cache .ruff_cache
