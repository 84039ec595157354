# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Writing weights: readable by safetensors, bounded in memory, all or nothing."""

import errno
import os
import weakref

import pytest
import torch
from safetensors.torch import load_file

from conversion.checkpoints import weights_writer
from conversion.checkpoints.weights_writer import TensorToWrite, write_weights


TENSORS = {
    "b": torch.arange(6.0).view(2, 3),
    "a": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
    "t": torch.ones(2, 9).T,
}


def entries(tensors=TENSORS):
    return [TensorToWrite(name, tuple(tensor.shape), lambda tensor=tensor: tensor) for name, tensor in tensors.items()]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_safetensors_reads_what_was_written(tmp_path, dtype):
    (file,) = write_weights(entries(), tmp_path / "new" / "folder", dtype)
    assert file.name == "model.safetensors"
    loaded = load_file(file)
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == dtype and torch.equal(loaded[name], tensor.to(dtype))


def test_tensors_are_loaded_one_at_a_time(tmp_path):
    alive = []

    def load(name):
        assert not [reference for reference in alive if reference() is not None]
        tensor = torch.zeros(1000)
        alive.append(weakref.ref(tensor))
        return tensor

    names = [TensorToWrite(f"n{i}", (1000,), lambda i=i: load(i)) for i in range(5)]
    write_weights(names, tmp_path, torch.float32)
    assert len(alive) == 5


def test_existing_weights_are_not_mixed_with_new_ones(tmp_path):
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(FileExistsError, match="already holds weights: model-00001"):
        write_weights(entries(), tmp_path, torch.float32)


@pytest.mark.parametrize("max_shard_size", [40, "5GB"])
def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path, monkeypatch, max_shard_size):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(weights_writer, "_tensor_bytes", full)
    with pytest.raises(OSError, match="No space left on device while writing.*model") as caught:
        write_weights(entries(), tmp_path, torch.float32, max_shard_size)
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_a_partial_write_is_continued():
    class Pipe:
        data = b""

        def write(self, view):
            self.data += bytes(view[:3])
            return min(3, len(view))

    pipe = Pipe()
    weights_writer._write_all(pipe, b"0123456789")
    assert pipe.data == b"0123456789"
