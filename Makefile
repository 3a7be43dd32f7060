# The way of the data, one verb a step; `make` alone lists them.
#
# A verb that a person types always runs. A file that another step needs is built only if it is missing.

MODEL ?= lightcnn
RECIPE ?=
DATA ?=
DATA1 ?= $(DATA)
FERPLUS ?=
EXP ?=
IMG ?=
ARGS ?=
ARGS1 ?=
ARGS2 ?=
STUDY ?= E0 E1 E2 E2b E3 E4 E5 E6
SEEDS ?= 40 41 42

.DEFAULT_GOAL := help
.PHONY: help install install-dev demo metadata train eval study ensemble student two-phase predict app detector export report test lint gpu tensorboard bench bench-photos bench-predict clean
.PRECIOUS: runs/%/best.pth
.DELETE_ON_ERROR:

# --- the interpreter: .venv where it is, else the one on the path if it has the requirements, else .venv is made ---------

SATISFIES = import sys, importlib.metadata as m; \
  from pip._vendor.packaging.requirements import Requirement as R; \
  lines = [line.split("\#")[0].strip() for path in sys.argv[1:] for line in open(path)]; \
  wanted = [R(line) for line in lines if line and not line.startswith("-")]; \
  sys.exit(any(m.version(r.name) not in r.specifier for r in wanted))
# $(call satisfied,FILES) is the name of the interpreter on the path that has what FILES ask for, or empty.
satisfied = $(shell python3 -c '$(SATISFIES)' $(1) 2>/dev/null && echo python3)

VENV := .venv/bin/python
PYTHON := $(or $(wildcard $(VENV)),$(call satisfied,requirements.txt),$(VENV))
PYTHON_DEV := $(or $(wildcard $(VENV)),$(call satisfied,requirements.txt requirements-export.txt requirements-dev.txt),$(VENV))
PYTHON_APP := $(or $(wildcard $(VENV)),$(call satisfied,requirements.txt requirements-app.txt),$(VENV))
READY := $(if $(filter $(VENV),$(PYTHON)),.venv/installed)
READY_APP := $(if $(filter $(VENV),$(PYTHON_APP)),.venv/installed-app)
READY_EXPORT := $(if $(filter $(VENV),$(PYTHON)),.venv/installed-export)
READY_DEV := $(if $(filter $(VENV),$(PYTHON_DEV)),.venv/installed-dev)

# Of a .venv that was interrupted while it was made, or that another tool made.
HAVE_PIP = $(VENV) -m pip --version >/dev/null 2>&1 || $(VENV) -m ensurepip || \
  { echo "pip cannot be had – remove .venv and call make again" >&2; exit 2; }

# The first interpreter that runs and is new enough, one that this was not tried with only where there is no other.
$(VENV):
	@for below in "3, 14" "4, 0"; do for python in python3 python3.13 python3.12 python3.11; do \
	  if $$python -c "import sys; sys.exit(not (3, 11) <= sys.version_info < ($$below))" 2>/dev/null; then \
	    echo "making .venv with $$($$python --version)"; $$python -m venv .venv && exit || { rm -rf .venv; exit 2; }; fi; \
	  done; done; \
	echo "Python 3.11 or newer not found – install it from python.org" >&2; exit 2

.venv/installed: requirements.txt | $(VENV)
	@$(HAVE_PIP)
	$(VENV) -m pip install --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/installed-export: requirements.txt requirements-export.txt | $(VENV)
	@$(HAVE_PIP)
	$(VENV) -m pip install --disable-pip-version-check -r requirements-export.txt
	@touch $@ .venv/installed

.venv/installed-app: requirements.txt requirements-app.txt | $(VENV)
	@$(HAVE_PIP)
	$(VENV) -m pip install --disable-pip-version-check -r requirements-app.txt
	@touch $@ .venv/installed

.venv/installed-dev: requirements.txt requirements-export.txt requirements-dev.txt | $(VENV)
	@$(HAVE_PIP)
	$(VENV) -m pip install --disable-pip-version-check -r requirements-dev.txt
	@touch $@ .venv/installed .venv/installed-export

# An environment's FERPLUS is the tests': it does not index.
VOTES = $(if $(filter command%,$(origin FERPLUS)),$(FERPLUS))
INDEXED = $(if $(DATA),--data "$(DATA)") $(if $(VOTES),--ferplus "$(VOTES)")

TYPED_MODEL = $(if $(filter command%,$(origin MODEL)),$(MODEL))

# What `make eval` scores: the run named, else the newest (of RECIPE or MODEL), else one that is trained for it.
NEWEST := $(shell ls -t runs/$(addsuffix _seed,$(or $(RECIPE),$(TYPED_MODEL)))*/best.pth 2>/dev/null | head -n 1)
CHECKPOINT := $(if $(EXP),runs/$(EXP)/best.pth,$(or $(NEWEST),runs/$(or $(RECIPE),$(MODEL))_seed42/best.pth))

# What is typed and would do nothing is refused, as the scripts do it.
IDLE_train := SEEDS STUDY
IDLE_eval := SEEDS STUDY
IDLE_study := RECIPE MODEL EXP
IDLE_ensemble := EXP STUDY ARGS1 ARGS2
IDLE_student := EXP STUDY ARGS1
IDLE_two-phase := RECIPE MODEL
IDLE_predict := RECIPE
ifeq ($(words $(MAKECMDGOALS)),1)
$(foreach name,$(IDLE_$(MAKECMDGOALS)),$(if $(filter command%,$(origin $(name))),\
  $(error $(name) does nothing for make $(MAKECMDGOALS) – leave it out)))
endif
ifneq ($(and $(filter study ensemble student,$(MAKECMDGOALS)),$(findstring --seed,$(ARGS) $(ARGS2))),)
$(error the runs of make $(MAKECMDGOALS) have their seeds from SEEDS="40 41 42" – leave --seed out)
endif
# What is lacking is said before anything is installed.
ifneq ($(filter predict,$(MAKECMDGOALS)),)
$(if $(IMG),,$(error which picture? make predict IMG=face.jpg))
endif
ifneq ($(filter two-phase,$(MAKECMDGOALS)),)
ifeq ($(if $(DATA),$(DATA1)$(VOTES)),$(DATA))
$(error which data? make two-phase DATA1=affectnet DATA=fer2013 (or FERPLUS=fer2013new.csv))
endif
endif
INDEXES := $(filter metadata two-phase,$(MAKECMDGOALS))
LEARNS := $(filter train eval study ensemble student,$(MAKECMDGOALS))
ifneq ($(and $(LEARNS),$(DATA)$(VOTES),$(wildcard metadata_train.parquet)),)
$(if $(INDEXES),,$(if $(filter command%,$(origin DATA) $(origin FERPLUS)),\
  $(error metadata_train.parquet is there already – index other data first: make metadata DATA=…)))
endif

# What `make train` trains: the recipe named, else that of the model.
ITS_MODEL = $(if $(RECIPE),$(if $(TYPED_MODEL),--model $(TYPED_MODEL)))
WHAT = $(if $(RECIPE),--recipe $(RECIPE) $(ITS_MODEL),--model $(MODEL))

# $(call train_once,EXP,RECIPE AND FLAGS,FLAGS OF THE SCORING): what was trained already is scored if it is not yet, what
# was interrupted goes on. The curves are drawn when a training is complete.
train_once = if [ -f runs/$(1)/training_history.png ]; then echo "runs/$(1) is there already: remove it to train it anew"; \
  elif [ -f runs/$(1)/last.pth ]; then $(PYTHON) train.py --resume runs/$(1)/last.pth; \
  else $(PYTHON) train.py $(2) --exp $(1); fi; [ -f runs/$(1)/metrics.json ] || $(PYTHON) evaluate.py runs/$(1) $(3)

TWO_PHASE = $(or $(EXP),two_phase)
PHASE_2 = --recipe resnet34_attention --init runs/$(TWO_PHASE)_1/best.pth
parquets = --train_meta runs/$(1)/data/metadata_train.parquet --val_meta runs/$(1)/data/metadata_val.parquet

# A face that the demo's network was not trained on.
A_VAL_FACE := "import pyarrow.parquet as pq; \
  print('runs/demo/data/' + pq.read_table('runs/demo/metadata_val.parquet')['path'][0].as_py())"

# --- verbs --------------------------------------------------------------------------------------------------------------

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "variables: MODEL=lightcnn|resnet50|resnet34_attention|resnet18_gray|…  RECIPE=E5  DATA=folder  EXP=name"
	@echo "           IMG=picture  ARGS=\"further flags\"  STUDY=\"E0 E5\"  SEEDS=\"40 41 42\""
	@echo "           FERPLUS=fer2013new.csv; two-phase: DATA1=folder of phase 1  ARGS1=…  ARGS2=…; student: ARGS2=…"
	@echo "for example: make metadata DATA=fer2013.csv && make train MODEL=lightcnn && make eval"

install: .venv/installed ## make .venv and install requirements.txt into it

install-dev: .venv/installed-dev ## install what tests and linting need, too

demo: $(READY) ## the whole chain on drawn faces, offline, in about 2 minutes
	@rm -rf runs/demo
	$(PYTHON) sample_faces.py --out runs/demo/data
	$(PYTHON) metadata_parallel.py --data runs/demo/data --out runs/demo
	$(PYTHON) train.py --recipe demo --train_meta runs/demo/metadata_train.parquet \
	  --val_meta runs/demo/metadata_val.parquet --runs runs/demo --exp drawn_faces
	$(PYTHON) evaluate.py runs/demo/drawn_faces/best.pth --meta runs/demo/metadata_val.parquet
	$(PYTHON) fer_transform.py --meta runs/demo/metadata_train.parquet --augment lightcnn --img_size 48 --grey --out runs/demo/batch.png
	$(PYTHON) predict.py --detector none --model runs/demo/drawn_faces/best.pth "$$($(PYTHON) -c $(A_VAL_FACE))"
	@echo
	@echo "These faces are drawn: the figures show that the chain works, not how well it reads people."
	@echo "Open runs/demo/drawn_faces/confusion_matrix.png, runs/demo/drawn_faces/training_history.png and runs/demo/batch.png."

metadata: $(READY) ## index DATA (default: data/, else this folder) into metadata_*.parquet
	$(PYTHON) metadata_parallel.py $(INDEXED) $(ARGS)

train: $(READY) | $(if $(findstring --resume,$(ARGS)),,metadata_train.parquet) ## train MODEL by its recipe into runs/
	$(PYTHON) train.py $(if $(findstring --resume,$(ARGS)),,$(WHAT)) $(if $(EXP),--exp "$(EXP)") $(ARGS)

eval: $(READY) | $(if $(EXP)$(NEWEST),,metadata_train.parquet $(CHECKPOINT)) ## score EXP, else the newest run (of RECIPE or MODEL); train first where there is none
	$(PYTHON) evaluate.py "$(CHECKPOINT)" $(ARGS)

# Every variant with every seed, one after another.
study: $(READY) | metadata_train.parquet ## the variants STUDY of the imbalance study with the seeds SEEDS, then their tables
	@set -e; for recipe in $(STUDY); do for seed in $(SEEDS); do \
	  $(call train_once,$${recipe}_seed$$seed,--recipe $$recipe --seed $$seed $(ARGS)); done; done
	$(PYTHON) report.py $(foreach recipe,$(STUDY),$(foreach seed,$(SEEDS),runs/$(recipe)_seed$(seed)))

# The members are runs of their own, scored on the validation split alone; the student, which ARGS2 is for alone, asks them
# what they see in its augmented pictures. Its name holds their seeds.
MEMBER = --recipe $(or $(RECIPE),$(TYPED_MODEL),fernet) $(ITS_MODEL)
ENSEMBLE = $(or $(RECIPE),$(TYPED_MODEL),fernet)$(if $(ITS_MODEL),_$(TYPED_MODEL))
empty :=
comma := ,
OF = $(ENSEMBLE)_$(subst $(empty) $(empty),-,$(strip $(SEEDS)))
# Another than its members' first weights and order of pictures.
STUDENT_SEED = $(shell printf '%s\n' $(SEEDS) | sort -n | awk 'END {print $$1 + 1}')
STUDENT = student_$(OF)_seed$(STUDENT_SEED)
TEN_VIEWS = --tta ten_crop --calibrate
MEMBERS = $(foreach seed,$(SEEDS),runs/$(ENSEMBLE)_seed$(seed))
TEACHERS = $(subst $(empty) $(empty),$(comma),$(MEMBERS))
ensemble: $(READY) | metadata_train.parquet ## RECIPE (default: fernet) with the seeds SEEDS, scored together by ten views
	@set -e; for seed in $(SEEDS); do \
	  $(call train_once,$(ENSEMBLE)_seed$$seed,$(MEMBER) --seed $$seed --no-score_test $(ARGS),--split val); done
	$(PYTHON) evaluate.py $(MEMBERS) $(TEN_VIEWS) --out runs/ensemble

student: ensemble ## make ensemble, then one network that learns from its members
	@set -e; $(call train_once,$(STUDENT),$(MEMBER) --seed $(STUDENT_SEED) --no-score_test \
	  --teacher $(TEACHERS) $(ARGS) $(ARGS2),--split val)
	$(PYTHON) evaluate.py runs/$(STUDENT) $(TEN_VIEWS) --out runs/student

# Phase 1 trains eight classes on DATA1 (a folder with contempt among its classes, or FER2013 with FERPLUS's votes), phase 2
# carries backbone and head over, by label name, to the seven of DATA.
two-phase: $(READY) ## ResNet-34 with attention: phase 1 on DATA1 (and FERPLUS), phase 2 on DATA
	$(PYTHON) metadata_parallel.py --data "$(DATA1)" --out runs/$(TWO_PHASE)_1/data \
	  $(if $(VOTES),--ferplus "$(VOTES)" --label_set ferplus8)
	$(PYTHON) metadata_parallel.py --data "$(DATA)" --label_set fer7 --out runs/$(TWO_PHASE)/data
	@set -e; $(call train_once,$(TWO_PHASE)_1,--recipe two_phase_1 $(call parquets,$(TWO_PHASE)_1) $(ARGS) $(ARGS1),--split val)
	@set -e; $(call train_once,$(TWO_PHASE),$(PHASE_2) $(call parquets,$(TWO_PHASE)) $(ARGS) $(ARGS2))

predict: $(READY) ## read the face in IMG, by the shipped network, the run EXP, or MODEL=student|fernet_votes|fernet
	$(PYTHON) predict.py "$(IMG)" $(if $(EXP)$(TYPED_MODEL),--model "$(or $(addprefix runs/,$(EXP)),$(TYPED_MODEL))") $(ARGS)

app: $(READY_APP) ## a web page on this machine that reads the faces of a picture
	$(PYTHON_APP) app.py $(ARGS)

detector: $(READY) ## fetch the face detector YuNet (0.2 MB) from its official address, and check it
	$(PYTHON) faces.py

export: $(READY_EXPORT) ## EXP (default: the newest run) as an ONNX file beside its checkpoint; in 8-bit integers with ARGS=--int8
	$(PYTHON) export.py "$(CHECKPOINT)" $(ARGS)

report: $(READY) ## keep the run EXP, if one is named, under results/, and write RESULTS.md
	$(PYTHON) report.py $(if $(EXP),runs/$(EXP)) $(ARGS)

test: lint ## lint, then all tests
	$(PYTHON_DEV) -m pytest $(ARGS)

lint: $(READY_DEV) ## ruff and mypy
	$(PYTHON_DEV) -m ruff check .
	$(PYTHON_DEV) -m ruff format --check .
	$(PYTHON_DEV) -m mypy .

bench: $(READY) ## indexing speed and memory against the plain way
	$(PYTHON) tests/bench_metadata.py $(ARGS)

gpu: $(READY) ## which device training would use, and why
	$(PYTHON) models.py

bench-photos: $(READY) | metadata_val.parquet ## accuracy on faces that have to be found in scenes
	$(PYTHON) tests/bench_photos.py $(ARGS)

bench-predict: $(READY) ## how soon predict.py answers, faces a second, memory
	$(PYTHON) tests/bench_predict.py $(ARGS)

tensorboard: $(READY) ## curves of all runs in the browser
	$(PYTHON) -m tensorboard.main --logdir runs $(ARGS)

clean: ## remove caches and the demo; runs, metadata and weights stay
	rm -rf runs/demo .pytest_cache .mypy_cache .ruff_cache __pycache__ tests/__pycache__

# --- files that a verb needs --------------------------------------------------------------------------------------------

metadata_train.parquet metadata_val.parquet: | $(READY)
	$(PYTHON) metadata_parallel.py $(INDEXED)

runs/%/best.pth: | $(READY) metadata_train.parquet
	$(PYTHON) train.py $(WHAT) --exp $*
