# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""`processor.collate`: inputs made one by one, joined to those of one call."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.image_processing_utils import BatchFeature

from llava_vit_hf import LlavaViTImageProcessor, LlavaViTProcessor
from tests import media
from tests.models import as_packing, dense_model


PATCH = 4
IMAGES = [media.image(26, 21), media.image(9, 30), media.image(26, 21)]
CLIPS = [media.frames(3, 17, 22) + media.pattern(17, 22), media.frames(5, 8, 9)]
GRIDS = [(1, 5, 6), (1, 7, 2), (1, 5, 6), (3, 4, 5), (3, 2, 2)]
MASKS = [np.random.default_rng(seed).random(grid) < 0.5 for seed, grid in enumerate(GRIDS)]


def processor(packing: bool) -> LlavaViTProcessor:
    return LlavaViTProcessor(LlavaViTImageProcessor(patch_size=PATCH, packing=packing, native_resolution=True))


def one_by_one(process, images, clips, masks=None, **options) -> list[BatchFeature]:
    samples = [{"images": image} for image in images] + [{"videos": clip} for clip in clips]
    kept = [{}] * len(samples) if masks is None else [{"keep": [mask]} for mask in masks]
    return [process(**sample, **keep, **options) for sample, keep in zip(samples, kept, strict=True)]


def assert_same(actual: BatchFeature, expected: BatchFeature) -> None:
    assert type(actual) is type(expected) and list(actual) == list(expected)
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert actual[key].dtype == value.dtype and torch.equal(actual[key], value), key
        else:
            assert type(actual[key]) is type(value) and actual[key] == value, key


@pytest.mark.parametrize("metadata", [False, True], ids=["", "metadata"])
@pytest.mark.parametrize("masks", [None, MASKS, [None, *MASKS[1:]]], ids=["whole", "sparse", "some whole"])
def test_packs_equal_one_call(masks, metadata):
    process, options = processor(True), {"num_frames": 3, "return_metadata": metadata}
    parts = one_by_one(process, IMAGES, CLIPS, masks, **options)
    expected = process(images=IMAGES, videos=CLIPS, keep=masks, **options)
    assert_same(process.collate(parts), expected)
    assert_same(process.collate(tuple(parts)), expected)
    # Parts of several samples, joined ones among them.
    assert_same(process.collate([process.collate(parts[:2]), *parts[2:4], process.collate(parts[4:])]), expected)
    assert_same(process.collate([expected]), expected)
    assert ("metadata" in expected) == metadata and expected["max_seqlen"] < int(expected["cu_seqlens"][-1])


@pytest.mark.parametrize("kind", ["images", "videos"])
@pytest.mark.parametrize("top_k", [None, 7], ids=["whole", "sparse"])
def test_dense_batches_equal_one_call(kind, top_k):
    process = processor(False)
    samples = {"images": [IMAGES[0], IMAGES[2].rotate(180)], "videos": [CLIPS[0], CLIPS[0][::-1]]}[kind]
    rng = np.random.default_rng(0)
    scores = [rng.random(GRIDS[0] if kind == "images" else GRIDS[3]) for _ in samples]
    options = {"num_frames": 3, "return_metadata": True} | ({} if top_k is None else {"top_k": top_k})
    of_scores = [{} if top_k is None else {"scores": [values]} for values in scores]
    parts = [process(**{kind: [one]}, **options, **own) for one, own in zip(samples, of_scores, strict=True)]
    expected = process(**{kind: samples}, **options, **({} if top_k is None else {"scores": scores}))
    assert_same(process.collate(parts), expected)
    assert ("visible_indices" in expected) == (top_k is not None) and len(expected["pixel_values"]) == 2


@torch.no_grad()
def test_models_see_no_difference():
    dense = dense_model(patch_size=PATCH)
    packing, process = as_packing(dense), processor(True)
    parts = one_by_one(process, IMAGES, CLIPS, MASKS, num_frames=3)
    output = packing(**process.collate(parts))
    expected = packing(**process(images=IMAGES, videos=CLIPS, keep=MASKS, num_frames=3))
    assert torch.equal(output.pooler_output, expected.pooler_output)
    alone = torch.cat([packing(**part).pooler_output for part in parts])
    torch.testing.assert_close(output.pooler_output, alone, rtol=0, atol=1e-4)
    # The samples are told apart: as one long sample they would be others.
    whole = process.collate(parts)
    ends = whole["cu_seqlens"][[0, -1]]
    one = {
        **whole,
        "cu_seqlens": ends,
        "max_seqlen": int(ends[-1]),
        "grid_thw": whole["grid_thw"].sum(0, keepdim=True),
    }
    assert not torch.allclose(packing(**one).last_hidden_state, output.last_hidden_state, atol=0.1)


class Samples(Dataset):
    """What the processor makes of each sample, in whichever process asks."""

    def __init__(self, process: LlavaViTProcessor):
        self.process = process

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> BatchFeature:
        return self.process(images=IMAGES[index])


@pytest.mark.parametrize("workers", [0, 2])
def test_as_the_collate_fn_of_a_loader(workers):
    process = processor(True)
    batches = list(DataLoader(Samples(process), batch_size=2, num_workers=workers, collate_fn=process.collate))
    assert_same(batches[0], process(images=IMAGES[:2]))
    assert_same(batches[1], process(images=IMAGES[2]))
    assert pickle.loads(pickle.dumps(process.collate)) is process.collate


@pytest.mark.long
@pytest.mark.once
def test_in_a_worker_that_inherits_nothing(tmp_path):
    """Code of a model folder, in a process that imports it itself."""
    processor(True).save_pretrained(tmp_path)
    shipped = get_class_from_dynamic_module("processing_llava_vit.LlavaViTProcessor", str(tmp_path))
    process = shipped.from_pretrained(tmp_path)
    assert process.collate.__module__.startswith("transformers_modules")
    options = {"batch_size": 3, "num_workers": 1, "multiprocessing_context": "spawn"}
    (joined,) = DataLoader(Samples(process), collate_fn=process.collate, **options)
    assert_same(joined, process(images=IMAGES))


def pack(**changes) -> dict:
    """A pack of one sample of 30 rows, with changes; `None` takes a key away."""
    inputs = {**processor(True)(images=IMAGES[0]), **changes}
    return {key: value for key, value in inputs.items() if value is not None}


def batch(**changes) -> dict:
    inputs = {**processor(False)(images=IMAGES[0]), **changes}
    return {key: value for key, value in inputs.items() if value is not None}


POSITIONS = torch.zeros(30, 3, dtype=torch.long)
BOUNDARIES = torch.tensor([0, 30], dtype=torch.int32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: [], r"at least one output of the processor, found a list of \[\]"),
        (lambda: pack(), "must be a list of .* found dict"),
        (lambda: None, "must be a list of .* found NoneType"),
        (lambda: [pack(), "a"], r"found a list of \['dict', 'str'\]"),
        (lambda: [pack(), batch()], r"inputs\[0\] and inputs\[1\] are for different models, dense and packing"),
        (lambda: [batch(), batch(), pack()], r"inputs\[0\] and inputs\[2\] are for different models"),
        (
            lambda: [pack(), pack(cu_seqlens=None)],
            r"inputs\[1\] has no cu_seqlens; expected in each: cu_seqlens, grid",
        ),
        (lambda: [pack(max_seqlen=None)], r"inputs\[0\] has no max_seqlen"),
        (lambda: [{**pack(), "max_seqlen": None}], r"inputs\[0\] has no max_seqlen"),
        (lambda: [pack(patch_positions=None)] * 2, r"inputs\[0\] has no patch_positions"),
        (lambda: [{"labels": torch.ones(1)}], r"inputs\[0\] has no pixel_values"),
        (lambda: [pack(), pack(metadata=[{}])], r"inputs\[1\] has metadata; expected in each"),
        (lambda: [pack(metadata=[{}]), pack()], r"inputs\[1\] has no metadata; expected in each"),
        (
            lambda: [pack(), pack(pixel_values=torch.ones(30, 48).half())],
            r"pixel_values: .*float32.* inputs\[0\] and .*16",
        ),
        (lambda: [pack(), pack(cu_seqlens=BOUNDARIES.long())], r"cu_seqlens: .*int32.* and .*int64.* in inputs\[1\]"),
        (lambda: [batch(), batch(pixel_values=torch.ones(1, 3, 21, 26, device="meta"))], "pixel_values: .*'meta'"),
        (
            lambda: [pack(), pack(pixel_values=torch.ones(30, 588))],
            r"shapes \(30, 48\) in inputs\[0\] and \(30, 588\)",
        ),
        (lambda: [pack(), pack(pixel_values=np.ones((30, 48)))], r"return_tensors='pt' makes it, found ndarray"),
        (lambda: [pack(labels=torch.tensor(3))], r"inputs\[0\]: labels must be a tensor of at least one dimension"),
        (lambda: [pack(labels=7)], r"inputs\[0\]: labels must be a tensor .* found int of shape \(\)"),
        (lambda: [pack(labels=[7]), pack(labels=torch.tensor([7]))], r"inputs\[0\]: labels must be a tensor .* list"),
        (
            lambda: [pack(), pack(cu_seqlens=torch.tensor([0, 29]).int())],
            r"inputs\[1\]: cu_seqlens must rise from 0 to the 30",
        ),
        (lambda: [pack(cu_seqlens=torch.tensor([1, 30]).int())], r"inputs\[0\]: cu_seqlens must rise from 0"),
        (lambda: [pack(), pack(max_seqlen=29)], r"inputs\[1\]: max_seqlen=29 is no integer of at least 30"),
        (lambda: [pack(max_seqlen="30")], r"inputs\[0\]: max_seqlen='30' is no integer"),
        (lambda: [pack(), pack(patch_positions=POSITIONS[1:])], r"inputs\[1\]: patch_positions must be .* \(30, 3\)"),
        (
            lambda: [pack(), pack(grid_thw=torch.tensor([[1, 2, 3]]))],
            r"inputs\[1\]: cu_seqlens gives the samples \[30\]",
        ),
        (
            lambda: [batch(), processor(False)(images=IMAGES[1])],
            "images or clips of one size.*native_resolution=False",
        ),
        (
            lambda: [
                processor(False)(videos=clip, num_frames=n) for clip, n in zip(CLIPS[:1] * 2, (2, 3), strict=True)
            ],
            r"shapes \(1, 3, 2, 16, 20\) in inputs\[0\] and \(1, 3, 3, 16, 20\) in inputs\[1\]",
        ),
        (
            lambda: [batch(), processor(False)(videos=CLIPS[0])],
            r"inputs\[1\] has patch_positions; .* images and clips",
        ),
    ],
)
def test_bad_inputs_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        processor(True).collate(make())


def test_labels_go_along():
    labelled = [{**pack(), "labels": torch.tensor([label]), "names": [str(label)]} for label in (3, 4)]
    joined = processor(True).collate(labelled)
    assert joined["labels"].tolist() == [3, 4] and joined["names"] == ["3", "4"]
