# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The packing model as one object that turns columns of images and videos into columns of features.

The same object serves `datasets.Dataset.map(embedder, batched=True)`, `IterableDataset.map`, which streams, and Ray
Data's `map_batches(LlavaViTEmbedder, fn_constructor_kwargs=...)`; of neither is anything imported. It packs by the
code of `extract_features.py`: a batch here gives what a shard of the same files gives there, byte for byte.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property

import numpy as np
import torch

from examples.extraction.column_values import only_value
from examples.extraction.decoding import Decoded, DecodeOptions, DecoderPool, Failure, attempt, error_text
from examples.extraction.encoding import (
    Encoder,
    check_layer_names,
    default_pack_tokens,
    load_packing_model,
    unusable,
)
from examples.extraction.feature_sets import DTYPES
from examples.extraction.inputs import KINDS, Item
from examples.extraction.limits import SampleLimits, check_positive
from examples.extraction.provenance import describe_model, locate_model
from examples.extraction.requests import check_choice
from examples.extraction.shards import column_of


FORMS = ("tokens", "frames")
# numpy, which columns are made of, has no bfloat16.
SAVE_DTYPES = ("float32", "float16")


class LlavaViTEmbedder:
    """Features of the images and videos in a batch of columns.

        embedder = LlavaViTEmbedder("user/name@COMMIT", layers=(-2, "pooler"))
        features = embedder({"id": [1, 2], "image": [picture, {"bytes": content, "path": None}]})

    Pickled, it is its settings and the model's hashes, so a process that gets it loads the model anew, and
    `Dataset.map` finds its cache again for the same model only.

    Args:
        packing_model_path: folder or repo id of a packing model, `user/name@revision` too. Its code is executed.
        layers: hidden states by index, and `"pooler"`.
        form: of hidden states: `"tokens"`, `(t * h * w, C)`, or `"frames"`, the mean of each frame, `(t, C)`.
        dtype: that the model computes in.
        save_dtype: of the features, float32 or float16; None is `dtype`, and float32 where that is bfloat16.
        device: None is the accelerator where there is one.
        revision: of the model's repo, where the path has none.
        pack_tokens: most tokens that share a forward pass; None is 2048 on a CPU and 16384 elsewhere.
        num_frames: sampled from each video.
        video_backend: see the processor.
        sample_limits: of images and videos.
        workers: processes that read rows while the model computes others; one that takes longer than `decode_timeout`
            seconds for a row is killed, which loses that row only. With 0 rows are read by the process that calls.
        image_column, video_column: names of the columns that are read.
        keep_columns: that come back beside the features; None is all that are not read.

    Raises:
        ValueError: for a setting that cannot be, a dense model, and a layer that the model has not.
        OSError: if the model cannot be had.
    """

    def __init__(
        self,
        packing_model_path: str,
        *,
        layers: Sequence[int | str] = (-2,),
        form: str = "tokens",
        dtype: str = "float32",
        save_dtype: str | None = None,
        device: str | None = None,
        attn_implementation: str = "sdpa",
        revision: str | None = None,
        pack_tokens: int | None = None,
        num_frames: int = 8,
        video_backend: str | None = None,
        sample_limits: SampleLimits | None = None,
        workers: int = 0,
        decode_timeout: float = 60.0,
        image_column: str = "image",
        video_column: str = "video",
        keep_columns: Sequence[str] | None = None,
    ):
        self._settings = {name: value for name, value in locals().items() if name != "self"}
        check_layer_names(layers)
        check_choice("form", form, FORMS)
        check_choice("dtype", dtype, DTYPES)
        save_dtype = save_dtype or (dtype if dtype in SAVE_DTYPES else "float32")
        check_choice("save_dtype", save_dtype, SAVE_DTYPES)
        check_positive("pack_tokens", pack_tokens)
        check_positive("num_frames", num_frames)
        if workers < 0 or not decode_timeout > 0:
            raise ValueError(
                f"workers must not be negative and decode_timeout positive; found {workers} and {decode_timeout:g}."
            )
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._located = locate_model("packing_model_path", str(packing_model_path), revision)
        self._model, self._processor = load_packing_model(self._located, layers, dtype, attn_implementation, device)
        self._layers, self._form, self._dtype, self._save_dtype = layers, form, dtype, save_dtype
        self._encoder = Encoder(
            self._model, list(layers), pack_tokens or default_pack_tokens(device), getattr(torch, save_dtype)
        )
        limits = sample_limits or SampleLimits()
        limits.apply_to_pillow()
        self._options = DecodeOptions(self._located.name, self._located.commit, limits, video_backend, hashes=False)
        self._workers, self._timeout, self._pool = workers, decode_timeout, None
        self._num_frames, self._keep = num_frames, keep_columns
        self._columns = dict(zip(KINDS, (image_column, video_column), strict=True))

    def __call__(self, batch: Mapping[str, Sequence]) -> dict[str, Sequence]:
        """Features of every row, in the order of the rows. A row has an image or a video; the other is None or has
        no column.

        Args:
            batch: columns. For what they may hold, see `column_values.readable`.

        Returns:
            The columns that are kept, and `kind` (`image` or `video`), `grid` `(rows, 3)` int64 of `t, h, w`, `error`,
            and of each layer `pooler` `(rows, C)` or, such as `layer_-2`, a list of `(N, C)`. A row that gives no
            sample says why in `error`, which is empty elsewhere; its grid is 0, its `(N, C)` has no rows and its
            pooled vector is NaN.

        Raises:
            TypeError: for a row in place of a batch.
            ValueError: if there is neither of the two columns, their lengths differ, or columns have the names of
                features.
            RuntimeError: if a pack does not fit in memory, or no reading process starts.
        """
        columns = {kind: batch[name] for kind, name in self._columns.items() if name in batch}
        if not columns:
            raise ValueError(
                f"the batch has the columns {', '.join(map(str, batch))}; expected "
                f"{' or '.join(self._columns.values())}. Name yours by image_column or video_column."
            )
        kept = self._kept(batch)
        rows = self._count_rows(columns)
        found = {"kind": [""] * rows, "grid": np.zeros((rows, 3), np.int64), "error": [""] * rows}
        found |= {column_of(layer): self._empty(layer, rows) for layer in self._layers}
        # Closed at once, as an error's traceback may live on and with it what was being read.
        with closing(self._samples(columns, rows, found)) as samples:
            for row, decoded, features in self._encoder.encode(samples):
                if error := unusable(features, self._dtype):
                    found["error"][row] = error
                    continue
                found["grid"][row] = decoded.grid_thw
                for layer in self._layers:
                    found[column_of(layer)][row] = self._formed(features[str(layer)], layer)
        return {**kept, **found}

    @cached_property
    def identity(self) -> dict[str, object]:
        """Hashes of the model's weights, processor and code."""
        described = describe_model(self._model, self._located)
        return {name: value for name, value in described.items() if name.endswith("_sha256")}

    def __reduce__(self):
        # A repo at the commit that was loaded, whatever its branch is then.
        pinned = {"packing_model_path": self._located.name, "revision": self._located.commit}
        return _load_again, ({**self._settings, **pinned}, self.identity)

    def _count_rows(self, columns: dict[str, Sequence]) -> int:
        for kind, column in columns.items():
            if isinstance(column, str | bytes | Mapping) or not hasattr(column, "__len__"):
                raise TypeError(
                    f"column {self._columns[kind]!r} is a {type(column).__name__}; expected a value for each row of a "
                    "batch: a list, or Dataset.map(embedder, batched=True)."
                )
        lengths = {self._columns[kind]: len(column) for kind, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns of a batch have one length; found {lengths}.")
        return next(iter(lengths.values()))

    def _kept(self, batch: Mapping[str, Sequence]) -> dict[str, Sequence]:
        others = [name for name in batch if name not in self._columns.values()]
        names = others if self._keep is None else self._keep
        if missing := sorted(set(names) - set(batch)):
            raise ValueError(f"keep_columns {missing}: the batch has the columns {', '.join(map(str, batch))}.")
        taken = {"kind", "grid", "error", *map(column_of, self._layers)} & set(names)
        if taken:
            raise ValueError(
                f"the batch has columns that are named as features are: {', '.join(sorted(taken))}. Rename them, or "
                "say by keep_columns which others to keep."
            )
        return {name: batch[name] for name in names}

    def _samples(self, columns: dict[str, Sequence], rows: int, found: dict) -> Iterator[tuple[int, Decoded]]:
        """The rows that give a sample, read as they are needed; of the others the error is noted."""
        for item, answer in self._read(self._items(columns, rows, found)):
            if isinstance(answer, Failure):
                found["error"][item.index] = answer.error
            else:
                yield item.index, answer

    def _items(self, columns: dict[str, Sequence], rows: int, found: dict) -> Iterator[Item]:
        """The rows that have one value, whose kind is noted; of the others the error is."""
        for row in range(rows):
            values = {
                kind: [(self._columns[kind], column[row])] if column[row] is not None else []
                for kind, column in columns.items()
            }
            try:
                found["kind"][row], _ = only_value(values)
            except ValueError as error:
                found["error"][row] = error_text(error)
                continue
            yield Item(row, str(row), f"row {row}", None, self._num_frames, values=values)

    def _read(self, items: Iterator[Item]) -> Iterator[tuple[Item, Decoded | Failure]]:
        if self._workers == 0:
            yield from ((item, attempt(self._processor, item, self._options)) for item in items)
            return
        if self._pool is None:
            self._pool = DecoderPool(self._options, self._workers, self._timeout, self._encoder.window_tokens)
            weakref.finalize(self, self._pool.close)
        try:
            yield from self._pool.results(items)
        except BaseException:
            # Of a batch that was given up the pool still holds rows.
            self._pool.close()
            self._pool = None
            raise

    def _empty(self, layer: int | str, rows: int) -> np.ndarray | list[np.ndarray]:
        """A column without features, of the same type as one with them."""
        size, dtype = self._model.config.hidden_size, np.dtype(self._save_dtype)
        return np.full((rows, size), np.nan, dtype) if layer == "pooler" else [np.zeros((0, size), dtype)] * rows

    def _formed(self, values: torch.Tensor, layer: int | str) -> np.ndarray:
        if layer == "pooler":
            return values.numpy()
        if self._form == "frames":
            # In float64, so that the mean is right to its last bit whatever order a library adds in.
            return values.double().mean(dim=(1, 2)).to(values.dtype).numpy()
        # A copy: a view of one pack would keep all of it in memory.
        return values.flatten(0, 2).numpy().copy()


def _load_again(settings: dict, identity: dict) -> LlavaViTEmbedder:
    """Makes an embedder of what is left of one in a pickle.

    Raises:
        ValueError: if the folder holds another model by now.
    """
    embedder = LlavaViTEmbedder(**settings)
    if embedder.identity != identity:
        raise ValueError(
            f"packing_model_path {settings['packing_model_path']}: the model has changed since the embedder was made."
        )
    return embedder
