# make demo   convert, verify, extract, compare and draw, on weights and media made here
# make test   the test suite with transformers 5 and with transformers 4.57
# Each sets up its own environment below .venv/ on first use. PYTHON names the interpreter to build them with.

PYTHON ?= python3
VENV := .venv
NEW := $(VENV)/transformers-5
OLD := $(VENV)/transformers-4
DEMO := demo_output

# kit           the conformance kit, for those who implement the encoder anew, in kit/
# test-quick    what takes no seconds, with transformers 5: between edits
# test-slow     what takes minutes: mutations, kills, all variants, files over 5 GB
# test-middle   the shipped files with a transformers in between
# test-torchvision  test where torchvision is installed, as it is for most users: about 5.5 GB, so not in CI

# fuzz          every entry point and file parser on bad inputs, and a table: make fuzz SECONDS=3600
# gpu           all that is worth knowing of one GPU, in 8 minutes; with the packages of PYTHON, as it installs nothing
# benchmark     speed, memory and growth as ratios, with a picture where matplotlib is installed; leave the machine alone

.PHONY: demo kit test test-new test-old test-quick test-slow test-middle test-torchvision fuzz benchmark style check
.PHONY: gpu audit clean

demo: $(NEW)/ready
	$(NEW)/bin/python conversion/make_demo_inputs.py $(DEMO)
	$(NEW)/bin/python conversion/convert_llava_vit_to_hf.py auto $(DEMO)/backbone.pt --num_attention_heads 2 \
	    --output_dir $(DEMO)/dense --time_budget 60 --overwrite
	$(NEW)/bin/python conversion/convert_llava_vit_packing_to_hf.py auto $(DEMO)/backbone.pt --num_attention_heads 2 \
	    --output_dir $(DEMO)/packing --time_budget 60 --overwrite
	$(NEW)/bin/python examples/extract_features.py --hf_model_path $(DEMO)/dense --packing_model_path $(DEMO)/packing \
	    --image1 $(DEMO)/1.jpg --image2 $(DEMO)/2.jpg --video1 $(DEMO)/1.mp4 --video2 $(DEMO)/2.mp4 \
	    --num_frames 8 --output_dir $(DEMO)/features
	$(NEW)/bin/python examples/verify_features.py --features_dir $(DEMO)/features
	$(NEW)/bin/python examples/visualize_features.py --features_dir $(DEMO)/features
	$(NEW)/bin/python docs/features_picture.py $(DEMO)/features/pictures $(DEMO)/features.png

kit: $(NEW)/ready
	$(NEW)/bin/python conversion/make_conformance_kit.py --output_dir $@ --overwrite

test: test-new test-old

# One thread a process, as many processes as cores; a file's tests stay together for their fixtures, and the files that
# take longest go first.
PYTEST := -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 15
SUITE := tests/test_published_thread.py tests/examples tests/conversion tests/test_hub_end_to_end.py tests/llava_vit_hf/test_compile.py tests

test-new: $(NEW)/ready $(OLD)/ready
	OMP_NUM_THREADS=1 LLAVA_VIT_OTHER_PYTHON=$(abspath $(OLD))/bin/python $(NEW)/bin/python $(PYTEST) \
	    -m "not slow" $(SUITE)

# Without what does not depend on the version of transformers or huggingface_hub.
test-old: $(NEW)/ready $(OLD)/ready
	OMP_NUM_THREADS=1 LLAVA_VIT_OTHER_PYTHON=$(abspath $(NEW))/bin/python $(OLD)/bin/python $(PYTEST) \
	    -m "not slow and not once" $(SUITE)

test-quick: $(NEW)/ready
	OMP_NUM_THREADS=1 $(NEW)/bin/python $(PYTEST) -m "not slow and not long" $(SUITE)

test-slow: $(NEW)/ready $(OLD)/ready
	LLAVA_VIT_OTHER_PYTHON=$(abspath $(OLD))/bin/python $(NEW)/bin/python -m pytest -m slow

# The suite of the shipped files with a transformers between the two: make test-middle MIDDLE=5.10.4
MIDDLE ?= 5.10.4
test-middle: $(VENV)/transformers-$(MIDDLE)/ready
	OMP_NUM_THREADS=1 $(VENV)/transformers-$(MIDDLE)/bin/python $(PYTEST) -m "not slow" tests/llava_vit_hf

TORCHVISION := torch==2.14.1 torchvision==0.29.1
WITH := $(VENV)/torchvision
test-torchvision: $(WITH)-5/ready $(WITH)-4/ready
	OMP_NUM_THREADS=1 LLAVA_VIT_OTHER_PYTHON=$(abspath $(WITH)-4)/bin/python $(WITH)-5/bin/python $(PYTEST) \
	    -m "not slow" $(SUITE)
	OMP_NUM_THREADS=1 LLAVA_VIT_OTHER_PYTHON=$(abspath $(WITH)-5)/bin/python $(WITH)-4/bin/python $(PYTEST) \
	    -m "not slow and not once" $(SUITE)

$(WITH)-5/ready: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install --quiet $(TORCHVISION) "transformers>=5,<6" -r requirements.txt -r requirements-dev.txt
	touch $@

# What it lacks it takes from the other: PyTorch alone is 5 GB.
$(WITH)-4/ready: $(WITH)-5/ready
	$(PYTHON) -m venv $(@D)
	$(WITH)-5/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
	    "$$($(@D)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/torchvision.pth"
	$(@D)/bin/python -m pip install --quiet "transformers>=4.57,<5" -r requirements.txt -r requirements-dev.txt
	touch $@

SECONDS ?= 60
fuzz: $(NEW)/ready
	$(NEW)/bin/python tests/fuzz/report.py --seconds $(SECONDS)

benchmark: $(NEW)/ready
	$(NEW)/bin/python tests/benchmarks/speed.py
	$(NEW)/bin/python tests/benchmarks/conversion.py

gpu:
	$(PYTHON) tests/benchmarks/gpu.py --output_dir benchmarks

style: $(NEW)/ready
	$(NEW)/bin/ruff check --fix . && $(NEW)/bin/ruff format .

check: $(NEW)/ready
	$(NEW)/bin/ruff check . && $(NEW)/bin/ruff format --check .

# Known vulnerabilities of what is installed. Needs the internet, so it is no part of `make test`; without an answer it
# fails, where pip-audit's default service would skip every package and exit with 0.
AUDIT := $(VENV)/audit

audit: $(NEW)/ready $(OLD)/ready $(AUDIT)/ready
	$(AUDIT)/bin/pip-audit --strict --vulnerability-service osv --path "$$($(NEW)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	$(AUDIT)/bin/pip-audit --strict --vulnerability-service osv --path "$$($(OLD)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

$(AUDIT)/ready:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet pip-audit
	touch $@

clean:
	rm -rf $(VENV) $(DEMO) kit

$(NEW)/ready: TRANSFORMERS := transformers>=5,<6
$(OLD)/ready: TRANSFORMERS := transformers>=4.57,<5
$(VENV)/transformers-$(MIDDLE)/ready: TRANSFORMERS := transformers==$(MIDDLE)
# torch first and pinned: a range would let another package replace it by a build for another device.
$(NEW)/ready $(OLD)/ready $(VENV)/transformers-$(MIDDLE)/ready: requirements.txt requirements-dev.txt constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(@D)/bin/python -m pip install --quiet --constraint constraints.txt "$(TRANSFORMERS)" \
	    -r requirements.txt -r requirements-dev.txt
	touch $@
