# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""What to extract: of four files with both models, or of any number with the packing model.

A request that can be made is one that makes sense by itself; what it names is looked for when it is carried out.
Messages name a field as the command line does, `--field`. Paths may be given as text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from conversion.common.hub_revision import split_revision
from examples.extraction.comparisons import DEFAULT_THRESHOLD
from examples.extraction.encoding import check_layer_names
from examples.extraction.feature_sets import DTYPES
from examples.extraction.limits import DEFAULT_LIMITS, FileLimits, SampleLimits, check_positive
from examples.extraction.shards import FORMATS, FORMATS_WITHOUT_BFLOAT16


INPUT_NAMES = ("image1", "image2", "video1", "video2")
INDEXES = ("jsonl", "parquet")
SCORES = ("codec",)
# What a run over many inputs reads.
SOURCES = ("inputs", "dataset", "webdataset")


@dataclass(frozen=True, kw_only=True)
class ExtractionRequest:
    """What both kinds of extraction are told.

    Attributes:
        packing_model_path: folder or repo id of a packing model, `user/name@revision` too. Its code is executed.
        output_dir: where the features go.
        num_frames: sampled from each video.
        dtype: that the models compute in.
        device: `cpu`, `cuda`, `cuda:1` and so on; None is the CPU for four files, and Accelerate's choice for many.
        revision: commit, tag or branch of a model repo that has none of its own.
        packing_revision: that of the packing model's repo.
        sample_limits: of images and videos.
        scores: `"codec"`: of videos only the patches that their codec marks go through the model; images go whole.
        top_k: with `scores`, how many patches of each video.
    """

    packing_model_path: str
    output_dir: Path
    num_frames: int = 8
    dtype: str = "float32"
    device: str | None = None
    attn_implementation: str = "sdpa"
    revision: str | None = None
    packing_revision: str | None = None
    sample_limits: SampleLimits = SampleLimits()
    scores: str | None = None
    top_k: int | None = None

    def __post_init__(self):
        for field in fields(self):
            if field.type is Path:
                object.__setattr__(self, field.name, Path(getattr(self, field.name)))
        check_positive("num_frames", self.num_frames)
        check_positive("top_k", self.top_k)
        check_choice("dtype", self.dtype, DTYPES)
        if self.scores is not None:
            check_choice("scores", self.scores, SCORES)
        if (self.scores is None) != (self.top_k is None):
            raise ValueError("--scores and --top_k go together: which patches are kept, and how many of each video.")

    @property
    def selection(self) -> dict[str, str | int]:
        """The processor's arguments for videos that choose patches."""
        return {} if self.scores is None else {"scores": self.scores, "top_k": self.top_k}

    @property
    def packing_model(self) -> tuple[str, str | None]:
        """Folder or repo id of the packing model, and the revision of the repo.

        Raises:
            ValueError: if it is pinned twice, to different revisions.
        """
        return self._pinned("packing_model_path", self.packing_revision)

    def _pinned(self, option: str, revision: str | None) -> tuple[str, str | None]:
        name, pinned = split_revision(f"--{option}", getattr(self, option), revision)
        return name, pinned or self.revision


@dataclass(frozen=True, kw_only=True)
class PairedRequest(ExtractionRequest):
    """Two images and two videos, to be run through the dense and the packing model.

    Attributes:
        hf_model_path: folder or repo id of the dense model, `user/name@revision` too. Its code is executed.
        hf_revision: that of the dense model's repo.
        threshold: smallest cosine of a token that passes.
    """

    hf_model_path: str
    image1: Path
    image2: Path
    video1: Path
    video2: Path
    hf_revision: str | None = None
    threshold: float = DEFAULT_THRESHOLD

    @property
    def dense_model(self) -> tuple[str, str | None]:
        """As `packing_model`, of the dense model."""
        return self._pinned("hf_model_path", self.hf_revision)

    @property
    def files(self) -> dict[str, Path]:
        """The four files by name."""
        return {name: getattr(self, name) for name in INPUT_NAMES}


@dataclass(frozen=True, kw_only=True)
class BulkRequest(ExtractionRequest):
    """Any number of images and videos, to be run through the packing model.

    Attributes:
        inputs: files, folders, globs and manifests; see `collect_inputs`. In their place may be one of:
        dataset: name or path of a dataset for `datasets`, `user/name@revision` too, of which `split` is streamed.
        webdataset: tar files, as `shard-{000..099}.tar`.
        dataset_config: name of one of the dataset's configurations.
        image_column, video_column: of the dataset; it has at least one of them.
        id_column: of the dataset; None is the number of the row.
        pack_tokens: most tokens that share a forward pass; None is 2048 on a CPU and 16384 elsewhere.
        layers: hidden states by index, and `"pooler"`.
        save_dtype: of the saved features; None is `dtype`.
        format: of the shards, `"safetensors"`, `"npz"` or, as tables, `"parquet"`.
        shard_size: inputs of a shard.
        index: `"parquet"` writes one beside `index.jsonl`.
        workers: processes that read files.
        decode_timeout: seconds to read one file.
        video_backend: see the processor; None is decord where it is exact, else PyAV.
        strict: stop at the first file that gives no sample.
        overwrite: start again where another run is.
        resume: add inputs that are new to the run in the folder.
        file_limits: of manifests.
    """

    inputs: Sequence[str | Path] | None = None
    dataset: str | None = None
    webdataset: str | None = None
    split: str | None = None
    dataset_config: str | None = None
    image_column: str = "image"
    video_column: str = "video"
    id_column: str | None = None
    pack_tokens: int | None = None
    layers: tuple[int | str, ...] = (-2,)
    save_dtype: str | None = None
    format: str = "safetensors"
    shard_size: int = 256
    index: str = "jsonl"
    workers: int = 2
    decode_timeout: float = 60.0
    video_backend: str | None = None
    strict: bool = False
    overwrite: bool = False
    resume: bool = False
    file_limits: FileLimits = DEFAULT_LIMITS

    def __post_init__(self):
        super().__post_init__()
        for name in ("pack_tokens", "shard_size", "workers"):
            check_positive(name, getattr(self, name))
        if not self.decode_timeout > 0:
            raise ValueError(f"--decode_timeout must be positive, found {self.decode_timeout:g}.")
        if isinstance(self.inputs, str | Path):
            raise ValueError(f"--inputs must be a list of entries, found {str(self.inputs)!r} alone.")
        given = [f"--{name}" for name in SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            options = ", ".join(f"--{name}" for name in SOURCES)
            raise ValueError(f"one of {options} says what to read, found {' and '.join(given) or 'none'}.")
        if (self.dataset is None) != (self.split is None):
            raise ValueError("--dataset and --split go together: which dataset, and which split of it.")
        if self.resume and (self.overwrite or self.inputs is None):
            raise ValueError("--resume adds files to a run; it goes with --inputs, and not with --overwrite.")
        check_choice("format", self.format, FORMATS)
        check_choice("index", self.index, INDEXES)
        check_choice("save_dtype", self.saved_dtype, DTYPES)
        if self.format in FORMATS_WITHOUT_BFLOAT16 and self.saved_dtype == "bfloat16":
            raise ValueError(
                f"--format {self.format} cannot hold bfloat16: give --save_dtype float32 or float16, or safetensors."
            )
        check_layer_names(self.layers)

    @property
    def saved_dtype(self) -> str:
        """Of the features on disk."""
        return self.save_dtype or self.dtype


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuses a value that is none of the choices.

    Raises:
        ValueError: naming the option.
    """
    if value not in choices:
        raise ValueError(f"--{name} must be one of {', '.join(choices)}, found {value!r}.")
