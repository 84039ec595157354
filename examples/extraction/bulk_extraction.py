# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Features of any number of images and videos with the packing model: packed, on any number of processes, resumable.

The inputs are cut into shards of consecutive items; a shard is the unit of everything. Accelerate's processes take
turns at shards, a killed run continues with the shards that are not complete, and what shares a forward pass is
decided within a shard. So neither the number of processes nor how often a run was killed changes a single bit.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from examples.extraction.decoding import Decoded, DecodeOptions, DecoderPool, Failure, start_server
from examples.extraction.encoding import Encoder, default_pack_tokens, load_packing_model, unusable
from examples.extraction.feature_sets import METADATA_FILE
from examples.extraction.files import exclusive, read_json, write_json
from examples.extraction.inputs import Item, collect_inputs, inputs_digest
from examples.extraction.provenance import (
    LocatedModel,
    check_model_name,
    describe_device,
    describe_model,
    locate_model,
    versions,
)
from examples.extraction.requests import BulkRequest
from examples.extraction.shards import (
    FAILURES_FILE,
    INDEX_FILE,
    PARQUET_FILE,
    SHARDS_FOLDER,
    ShardWriter,
    import_pyarrow,
    is_complete,
    merge_shards,
    shard_path,
)


# Processes wait for the slowest at the end; the default of torch is minutes.
LONGEST_WAIT = timedelta(weeks=8)
REPORTED = (
    *("kind", "width", "height", "grid_thw", "frame_indices", "temporal_positions", "timestamps", "fps"),
    *("total_frames", "decoder", "decoder_fallback", "sha256", "pixels_sha256", "kept_patches"),
    *("codec_score", "keep_first_frame", "block", "codec_way"),
)


class StrictError(ValueError):
    """A file gave no sample, and the run was to stop at the first."""


class Progress:
    """A bar of samples, with tokens per second and failures, on one process."""

    def __init__(self, total: int, done: int, shown: bool):
        self._bar = tqdm(total=total, initial=done, unit="sample", disable=not shown)
        self._start, self._tokens, self._failures = time.monotonic(), 0, 0

    def add(self, tokens: int = 0, failures: int = 0) -> None:
        self._tokens += tokens
        self._failures += failures
        speed = self._tokens / max(time.monotonic() - self._start, 1e-9)
        self._bar.set_postfix_str(f"{speed:.0f} tokens/s, {self._failures} failures", refresh=False)
        self._bar.update()

    def close(self) -> None:
        self._bar.close()


def cut_into_shards(items: list[Item], shard_size: int) -> list[list[Item]]:
    """Consecutive items, `shard_size` at a time."""
    return [items[start : start + shard_size] for start in range(0, len(items), shard_size)]


def write_shards(
    shards: dict[int, list[Item]], pool: DecoderPool, encoder: Encoder, progress: Progress, request: BulkRequest
) -> None:
    """Extracts and writes shards, one after another, while the pool reads ahead.

    Raises:
        StrictError: if the request is strict, at the first file that gives no sample.
    """
    answers = pool.results(item for items in shards.values() for item in items)
    for shard, items in shards.items():
        writer = ShardWriter(request.output_dir, shard, request.format)
        readable = _readable(_take(answers, len(items)), writer, request, progress)
        for sample in encoder.encode(readable):
            _add(writer, *sample, request, progress)
        writer.finish()


def _readable(
    answers: Iterator, writer: ShardWriter, request: BulkRequest, progress: Progress
) -> Iterator[tuple[Item, Decoded]]:
    """The samples among the answers; failures are written."""
    for item, answer in answers:
        if isinstance(answer, Failure):
            _fail(writer, item, answer.error, request, progress)
        else:
            yield item, answer


def _take(answers: Iterator, count: int) -> Iterator:
    for _ in range(count):
        yield next(answers)


def _add(
    writer: ShardWriter, item: Item, decoded: Decoded, features: dict, request: BulkRequest, progress: Progress
) -> None:
    if error := unusable(features, request.dtype):
        _fail(writer, item, error, request, progress)
        return
    tokens = len(decoded.pixel_values)
    report = {name: decoded.report[name] for name in REPORTED if name in decoded.report}
    writer.add(item.index, {"id": item.id, "path": os.path.abspath(item.path), "tokens": tokens, **report}, features)
    progress.add(tokens=tokens)


def _fail(writer: ShardWriter, item: Item, error: str, request: BulkRequest, progress: Progress) -> None:
    if request.strict:
        raise StrictError(f"{item.path}: {error}")
    writer.fail(item.index, {"id": item.id, "path": os.path.abspath(item.path), "error": error})
    progress.add(failures=1)


def _locate(request: BulkRequest, state: PartialState) -> LocatedModel:
    """The model, of a repo the same commit on all processes: a branch may move while they start."""
    located = locate_model("packing_model_path", *request.packing_model) if state.is_main_process else None
    (main,) = broadcast_object_list([located])
    if state.is_main_process or main.commit is None:
        return main
    return replace(locate_model("packing_model_path", main.name, main.commit), revision=main.revision)


def describe_run(model, located: LocatedModel, items: list[Item], request: BulkRequest) -> dict:
    """Everything that the features depend on. A run only continues if it is all the same."""
    return {
        "feature": f"hidden_states{json.dumps(request.layers)}",
        "layers": [str(layer) for layer in request.layers],
        "inputs": {"count": len(items), "sha256": inputs_digest(items)},
        "dtype": request.dtype,
        "save_dtype": request.saved_dtype,
        "format": request.format,
        # The name that folders of earlier versions have, too.
        "max_tokens": request.pack_tokens,
        "shard_size": request.shard_size,
        **asdict(request.sample_limits),
        "video_backend": request.video_backend,
        **request.selection,
        **describe_device(model.device),
        "versions": versions(),
        "models": {"packing": describe_model(model, located)},
    }


def _prepare_folder(run: dict, request: BulkRequest) -> None:
    """Starts a run in the output folder, or makes sure that it continues the one that is there.

    Raises:
        ValueError: if the folder holds another run.
    """
    folder = request.output_dir
    path = folder / METADATA_FILE
    if request.overwrite:
        shutil.rmtree(folder / SHARDS_FOLDER, ignore_errors=True)
        for name in (METADATA_FILE, INDEX_FILE, FAILURES_FILE, PARQUET_FILE):
            (folder / name).unlink(missing_ok=True)
    if path.exists():
        earlier = read_json(path)
        earlier.pop("counts", None)
        # As JSON writes it: no tuples, text keys.
        run = json.loads(json.dumps(run, default=str))
        changed = sorted(name for name in run.keys() | earlier.keys() if run.get(name) != earlier.get(name))
        if changed:
            raise ValueError(
                f"--output_dir {folder} holds a run that differs in {', '.join(changed)}. Give another folder, the "
                "same settings to continue, or --overwrite to start again."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, run)


def extract_many(request: BulkRequest) -> dict[str, int] | None:
    """Extracts features of all inputs, or what is missing of them, on this process or on all that Accelerate started.

    Returns:
        The run's counts of `samples`, `failures`, `tokens` and `shards`; None on all processes but the main one.

    Raises:
        ValueError: for inputs or a model that cannot be, another run in the folder, finished or at work, and, if the
            request is strict, a file without a sample.
        ImportError: for Parquet without pyarrow.
        OSError: if the model cannot be had.
        RuntimeError: if a pack does not fit in memory, or no reading process starts.
    """
    check_model_name("packing_model_path", request.packing_model[0])
    on_cpu = request.device == "cpu"
    state = PartialState(cpu=on_cpu, timeout=LONGEST_WAIT)
    device = torch.device(request.device) if request.device and state.num_processes == 1 else state.device
    device = torch.device("cpu") if on_cpu else device
    if request.pack_tokens is None:
        request = replace(request, pack_tokens=default_pack_tokens(device))
    for option in ("format", "index"):
        if getattr(request, option) == "parquet":
            import_pyarrow(f"--{option} parquet")
    start_server()
    items = collect_inputs([str(entry) for entry in request.inputs], request.num_frames, request.file_limits)
    located = _locate(request, state)
    # One process at a time: transformers copies the model's code into a cache that they share.
    with state.local_main_process_first():
        model, _ = load_packing_model(located, request.layers, request.dtype, request.attn_implementation, device)
    with ExitStack() as held:
        if state.is_main_process:
            # Held by the one process for all of its run's.
            held.enter_context(exclusive(request.output_dir))
            _prepare_folder(describe_run(model, located, items, request), request)
        state.wait_for_everyone()

        all_shards = cut_into_shards(items, request.shard_size)
        # In turns, as videos often come last in a list and would all fall to the last process.
        mine = dict(list(enumerate(all_shards))[state.process_index :: state.num_processes])
        missing = {shard: part for shard, part in mine.items() if not is_complete(request.output_dir, shard)}
        total, left = (sum(map(len, part.values())) for part in (mine, missing))
        encoder = Encoder(model, list(request.layers), request.pack_tokens, getattr(torch, request.saved_dtype))
        decoding = DecodeOptions(
            model_path=located.name,
            revision=located.commit,
            limits=request.sample_limits,
            video_backend=request.video_backend,
            selection=request.selection,
        )
        progress = Progress(total, total - left, shown=state.is_main_process)
        if missing:
            with DecoderPool(decoding, request.workers, request.decode_timeout) as pool:
                write_shards(missing, pool, encoder, progress, request)
        progress.close()
        state.wait_for_everyone()
        counts = _finish(request, len(all_shards)) if state.is_main_process else None
        state.wait_for_everyone()
        return counts


def _finish(request: BulkRequest, shards: int) -> dict[str, int]:
    folder = request.output_dir
    counts = merge_shards(folder, shards, parquet=request.index == "parquet")
    for partial in shard_path(folder, 0).parent.glob(".partial-*"):
        partial.unlink()
    write_json(folder / METADATA_FILE, {**read_json(folder / METADATA_FILE), "counts": counts})
    return {**counts, "shards": shards}
