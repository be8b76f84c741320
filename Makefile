# make demo runs the whole kit on synthetic data, make test runs the tests. Both make .venv first.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
export DEMO ?= outputs/demo
PAPERMILL := $(BIN)/papermill --no-progress-bar --log-output --log-level WARNING

DEMO_MARK := $$DEMO/.made-by-make-demo

# The demo shows in minutes on two cores that everything works, so its images are small and its epochs few. Augmentation would
# pay only in longer training. resnet50 also pools earlier maps, as its last ones have just 3 x 3 cells, and rnn reads with a
# ResNet18 instead of its ResNet50. Half of the patients have cancer, so that results are less noisy.
DEMO_DATA := -p competition_dir "$$DEMO/competition" -p cache_dir "$$DEMO/cache"
DEMO_SIZE := -p image_height 96 -p image_width 72
DEMO_TRAIN := $(DEMO_DATA) $(DEMO_SIZE) -p n_folds 2 -p epochs 4 -p learning_rate 1e-3 -p positive_share 0.5
DEMO_RUNS := $$DEMO/runs/cnn,$$DEMO/runs/resnet50,$$DEMO/runs/rnn
DEMO_TUNED := -p run_dirs "$(DEMO_RUNS)" -p threshold_path "$$DEMO/threshold.json"

.DEFAULT_GOAL := help
.PHONY: help venv demo test kaggle rehearse bench gpu-check oldest newest lint format clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 11

$(READY): requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	@test "$$(uname -s)" = Linux || echo "The kit is made for Linux. The end of README.md says what works on $$(uname -s)."
	@echo "Installing into .venv (about 6 GB with torch; some minutes, once) …"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
	@mkdir -p outputs && touch $@

venv: $(READY) ## make .venv and install requirements.txt into it, at the versions of constraints.txt

# PICTURES=1 renews the pictures in docs/. It deletes the folder of an earlier demo, and no other. The shell expands $$DEMO, so quotes in a name are part of the name.
demo: $(READY) ## preprocess, train three architectures, tune, report and submit on synthetic mammograms
	@test -n "$$DEMO" || { echo 'DEMO is empty. Name a folder, such as DEMO=outputs/demo.'; exit 1; }
	@case "$$DEMO" in *,* | "~"* | -*) echo "DEMO is $$DEMO. Name a folder without a comma, and without ~ or - at its beginning."; exit 1;; esac
	@test ! -L "$$DEMO" || { echo "$$DEMO is a link. Name the folder itself with DEMO=."; exit 1; }
	@test ! -e "$$DEMO" || test -e "$(DEMO_MARK)" || { echo "$$DEMO was not made by make demo. Name another folder with DEMO=, or delete it."; exit 1; }
	@rm -rf -- "$$DEMO" && mkdir -p -- "$$DEMO/notebooks" && touch -- "$(DEMO_MARK)"
	$(BIN)/python -m utils.phantom "$$DEMO/competition" --train-patients 100 --test-patients 40 --height 256 --contrast 2 --positive-share 0.5
	$(PAPERMILL) notebooks/preprocess.ipynb "$$DEMO/notebooks/preprocess.ipynb" $(DEMO_DATA) $(DEMO_SIZE)
	$(PAPERMILL) notebooks/train.ipynb "$$DEMO/notebooks/train-cnn.ipynb" $(DEMO_TRAIN) -p architecture cnn -p run_dir "$$DEMO/runs/cnn" -p batch_size 8 -p recipe augment_strength=0
	$(PAPERMILL) notebooks/train.ipynb "$$DEMO/notebooks/train-resnet50.ipynb" $(DEMO_TRAIN) -p architecture resnet50 -p run_dir "$$DEMO/runs/resnet50" -p batch_size 8 -p recipe "augment_strength=0 pooling=stages"
	$(PAPERMILL) notebooks/train.ipynb "$$DEMO/notebooks/train-rnn.ipynb" $(DEMO_TRAIN) -p architecture rnn -p run_dir "$$DEMO/runs/rnn" -p batch_size 4 -p recipe "augment_strength=0 encoders=cnn,resnet18"
	$(PAPERMILL) notebooks/tune_threshold.ipynb "$$DEMO/notebooks/tune_threshold.ipynb" $(DEMO_TUNED)
	$(PAPERMILL) notebooks/report.ipynb "$$DEMO/notebooks/report.ipynb" $(DEMO_DATA) $(DEMO_TUNED) -p report_path "$$DEMO/report.html"
	$(PAPERMILL) notebooks/submit.ipynb "$$DEMO/notebooks/submit.ipynb" $(DEMO_DATA) $(DEMO_TUNED) -p submission_path "$$DEMO/submission.csv"
	@$(BIN)/python -m utils.evaluation.demo "$$DEMO"
	@test -z "$(PICTURES)" || $(BIN)/python docs/pictures.py "$$DEMO"

test: $(READY) ## run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Parameters of kernels: make kaggle BUNDLE="--set train:epochs=12 'train:recipe=strong mixup=0.4'"
kaggle: $(READY) ## write push-ready folders for Kaggle into outputs/kaggle: code, weights, wheels, notebooks (sends nothing)
	$(BIN)/python -m utils.kaggle bundle $(BUNDLE)

rehearse: $(READY) ## run submit in a copy of Kaggle's world: no network, read-only input, only the bundle's wheels
	$(BIN)/python -m utils.rehearsal $(REHEARSE)

bench: $(READY) ## measure start-up, evaluation, and inference, training and preprocessing next to other paths (35 minutes, 4 GB of files)
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.evaluation
	$(BIN)/python -m benchmarks.inference
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.choices
	$(BIN)/python -m benchmarks.preprocessing

gpu-check: $(READY) ## check training, memory, processes and speed on this machine's GPU (8 minutes at most; without one, at toy size)
	$(BIN)/python -m benchmarks.gpu_check

# Without torch, whose oldest build would be another 6 GB: all that reads, draws, preprocesses and measures.
OLDEST_TESTS := $(addprefix tests/,$(addsuffix .py,benchmarks/test_limit core/test_devices core/test_files core/test_folders core/test_formats core/test_parallel core/test_parameters decision/test_calibration decision/test_coverage dicom/test_file dicom/test_header dicom/test_hostile dicom/test_jpeg dicom/test_jpeg2000 dicom/test_window evaluation/test_marks evaluation/test_pointing explore/test_summary images/test_boxes images/test_breast images/test_cache images/test_cluster images/test_film images/test_inputs images/test_preprocessing images/test_resample kaggle/test_ledger metrics/test_intervals metrics/test_scores metrics/test_thresholds networks/test_auxiliary phantom/test_competition runs/test_run submission/test_deadline tables/test_competition training/test_augment))

oldest: ## run what needs no torch at the oldest versions that requirements.txt allows (needs Python 3.11, as they do)
	@$(PYTHON) -m venv .venv-oldest
	@grep -vE '^(#|$$|torch|timm|onnx|kaggle|jupyter|papermill|ruff|nbstripout|tensorboard|playwright)' requirements.txt | sed 's/>=/==/' > .venv-oldest/requirements.txt
	@.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -r .venv-oldest/requirements.txt
	.venv-oldest/bin/python -m pytest -p no:cacheprovider -n 2 --dist loadfile $(OLDEST_TESTS)

newest: ## run the tests with the newest versions that requirements.txt allows (another 6 GB)
	@$(PYTHON) -m venv .venv-newest
	@.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade -r requirements.txt
	.venv-newest/bin/python -m pytest -p no:cacheprovider -n 2 --dist loadfile

lint: $(READY) ## check style, and that the notebooks are stored without outputs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify --keep-id --extra-keys "metadata.papermill cell.metadata.papermill" notebooks/*.ipynb

format: $(READY) ## mend what lint finds
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/nbstripout --keep-id --extra-keys "metadata.papermill cell.metadata.papermill" notebooks/*.ipynb

clean: ## remove what runs have made; data/, .venv and submissions/ stay
	rm -rf outputs .pytest_cache .ruff_cache
