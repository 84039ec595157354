# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Features of any number of images and videos with the packing model: packed, on any number of processes, resumable.

The inputs are cut into shards of consecutive items; a shard is the unit of everything. Accelerate's processes take
turns at shards, a killed run continues with the shards that are not complete, and what shares a forward pass is
decided within a shard. So neither the number of processes nor how often a run was killed changes a single bit.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import timedelta
from functools import cache
from itertools import chain, groupby

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

from examples.extraction.decoding import Decoded, DecodeOptions, DecoderPool, Failure, start_server
from examples.extraction.encoding import Encoder, default_pack_tokens, load_packing_model, unusable
from examples.extraction.feature_sets import METADATA_FILE
from examples.extraction.files import exclusive, read_json, write_json
from examples.extraction.inputs import Item, collect_inputs
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
    Background,
    ShardWriter,
    import_pyarrow,
    is_complete,
    merge_shards,
    shard_path,
)
from examples.extraction.sources import (
    INPUTS_FILE,
    ListedInputs,
    Source,
    list_inputs,
    open_dataset,
    open_webdataset,
)
from examples.extraction.stage_times import StageTimes, merge_times


# Processes wait for the slowest at the end; the default of torch is minutes.
LONGEST_WAIT = timedelta(weeks=8)
REPORTED = (
    *("kind", "width", "height", "grid_thw", "frame_indices", "temporal_positions", "timestamps", "fps"),
    *("total_frames", "decoder", "decoder_fallback", "sha256", "pixels_sha256", "kept_patches"),
    *("codec_score", "keep_first_frame", "block", "codec_way"),
)


# What metadata.json says of how a run went, beside what it was.
OUTCOME = ("counts", "times")


class StrictError(ValueError):
    """A file gave no sample, and the run was to stop at the first."""


class Progress:
    """A bar of samples, with failures and what the stages take, on one process."""

    def __init__(self, total: int | None, done: int, times: StageTimes, shown: bool):
        self._bar = tqdm(total=total, initial=done, unit="sample", disable=not shown)
        self._times, self._failures = times, 0

    def add(self, tokens: int = 0, failures: int = 0) -> None:
        self._times.patches += tokens
        self._failures += failures
        self._bar.set_postfix_str(f"{self._times.text()}, {self._failures} failures", refresh=False)
        self._bar.update()

    def close(self) -> None:
        self._bar.close()


def write_shards(
    items: Iterator[Item],
    pool: DecoderPool,
    encoder: Encoder,
    times: StageTimes,
    progress: Progress,
    request: BulkRequest,
) -> None:
    """Extracts and writes shards, one after another, while the pool reads ahead and what is done goes to the disk.

    Raises:
        StrictError: if the request is strict, at the first file that gives no sample.
        OSError: if a shard cannot be written.
    """
    with Background(times) as background:
        for shard, answers in groupby(pool.results(items), key=lambda answer: answer[0].shard):
            writer = ShardWriter(request.output_dir, shard, request.format, background.do)
            readable = _readable(answers, writer, times, request, progress)
            for sample in encoder.encode(readable):
                _add(writer, *sample, request, progress)
            writer.finish()


def _readable(
    answers: Iterator, writer: ShardWriter, times: StageTimes, request: BulkRequest, progress: Progress
) -> Iterator[tuple[Item, Decoded]]:
    """The samples among the answers; failures are written."""
    for item, answer in answers:
        times.seconds["reading"] += answer.seconds
        if isinstance(answer, Failure):
            _fail(writer, item, answer.error, request, progress)
        else:
            yield item, answer


def _add(
    writer: ShardWriter, item: Item, decoded: Decoded, features: dict, request: BulkRequest, progress: Progress
) -> None:
    if error := unusable(features, request.dtype):
        _fail(writer, item, error, request, progress)
        return
    tokens = len(decoded.pixel_values)
    report = {name: decoded.report[name] for name in REPORTED if name in decoded.report}
    writer.add(item.index, {"id": item.id, "path": item.place, "tokens": tokens, **report}, features)
    progress.add(tokens=tokens)


def _fail(writer: ShardWriter, item: Item, error: str, request: BulkRequest, progress: Progress) -> None:
    if request.strict:
        raise StrictError(f"{item.path}: {error}")
    writer.fail(item.index, {"id": item.id, "path": item.place, "error": error})
    progress.add(failures=1)


def _locate(request: BulkRequest, state: PartialState) -> LocatedModel:
    """The model, of a repo the same commit on all processes: a branch may move while they start."""
    located = locate_model("packing_model_path", *request.packing_model) if state.is_main_process else None
    (main,) = broadcast_object_list([located])
    if state.is_main_process or main.commit is None:
        return main
    return replace(locate_model("packing_model_path", main.name, main.commit), revision=main.revision)


def describe_run(model, located: LocatedModel, source: Source, request: BulkRequest) -> dict:
    """Everything that the features depend on. A run only continues if it is all the same."""
    return {
        "feature": f"hidden_states{json.dumps(request.layers)}",
        "layers": [str(layer) for layer in request.layers],
        "inputs": source.description,
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


def prepare_folder(run: dict, source: Source, request: BulkRequest) -> None:
    """Starts a run in the output folder, or makes sure that it continues the one that is there.

    Raises:
        ValueError: if the folder holds another run.
    """
    folder = request.output_dir
    path = folder / METADATA_FILE
    if request.overwrite:
        shutil.rmtree(folder / SHARDS_FOLDER, ignore_errors=True)
        for name in (METADATA_FILE, INDEX_FILE, FAILURES_FILE, PARQUET_FILE, INPUTS_FILE):
            (folder / name).unlink(missing_ok=True)
    # As JSON writes it: no tuples, text keys.
    run = json.loads(json.dumps(run, default=str))
    if path.exists():
        earlier = {name: value for name, value in read_json(path).items() if name not in OUTCOME}
        changed = {name for name in run.keys() | earlier.keys() if run.get(name) != earlier.get(name)}
        grown = isinstance(source, ListedInputs) and source.continues and changed == {"inputs"}
        if changed and not grown:
            raise ValueError(
                f"--output_dir {folder} holds a run that differs in {', '.join(sorted(changed))}. Give another "
                "folder, the same settings to continue, or --overwrite to start again."
            )
    # The list first: it is what tells a run that has grown.
    if isinstance(source, ListedInputs):
        source.write(folder)
    if not path.exists() or changed:
        write_json(path, run)


def check_formats(request: BulkRequest) -> None:
    """Raises an ImportError if what the formats need is not installed."""
    for option in ("format", "index"):
        if getattr(request, option) == "parquet":
            import_pyarrow(f"--{option} parquet")


def encoder_and_pool(
    model, located: LocatedModel, times: StageTimes, request: BulkRequest
) -> tuple[Encoder, DecoderPool]:
    """What `write_shards` works with."""
    encoder = Encoder(model, list(request.layers), request.pack_tokens, getattr(torch, request.saved_dtype), times)
    decoding = DecodeOptions(
        model_path=located.name,
        revision=located.commit,
        limits=request.sample_limits,
        video_backend=request.video_backend,
        selection=request.selection,
    )
    return encoder, DecoderPool(decoding, request.workers, request.decode_timeout, encoder.window_tokens)


def _open_source(request: BulkRequest) -> Callable[[], Source]:
    """Looks for the inputs; gives what cuts them into shards, once the run in the folder is known."""
    if request.inputs is None:
        source = (open_dataset if request.webdataset is None else open_webdataset)(request)
        return lambda: source
    items = collect_inputs([str(entry) for entry in request.inputs], request.num_frames, request.file_limits)
    return lambda: list_inputs(items, request)


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
    check_formats(request)
    start_server()
    source_of_run = _open_source(request)
    located = _locate(request, state)
    # One process at a time: transformers copies the model's code into a cache that they share.
    with state.local_main_process_first():
        model, _ = load_packing_model(located, request.layers, request.dtype, request.attn_implementation, device)
    with ExitStack() as held:
        if state.is_main_process:
            # Held by the one process for all of its run's.
            held.enter_context(exclusive(request.output_dir))
            source = source_of_run()
            prepare_folder(describe_run(model, located, source, request), source, request)
        state.wait_for_everyone()
        if not state.is_main_process:
            source = source_of_run()
        times = StageTimes(request.workers)
        worked = _extract_missing(source, model, located, times, state, request)
        summaries = gather_object([times.summary()] if worked else [])
        counts = finish_run(request, source.shards, summaries) if state.is_main_process else None
        state.wait_for_everyone()
        return counts


def _extract_missing(
    source: Source, model, located: LocatedModel, times: StageTimes, state: PartialState, request: BulkRequest
) -> bool:
    """Extracts this process's shards, as far as they are not complete. Returns whether there was one."""

    # In turns, as videos often come last in a list and would all fall to the last process.
    @cache
    def is_missing(shard: int) -> bool:
        is_mine = shard % state.num_processes == state.process_index
        return is_mine and not is_complete(request.output_dir, shard)

    items = source.walk(is_missing)
    first = next(items, None)
    if first is None:
        return False
    total, left = None, 0
    if source.count is not None:
        total = sum(1 for _ in source.walk(lambda shard: shard % state.num_processes == state.process_index))
        left = sum(1 for _ in source.walk(is_missing))
    progress = Progress(total, (total or left) - left, times, shown=state.is_main_process)
    encoder, pool = encoder_and_pool(model, located, times, request)
    with pool:
        write_shards(chain([first], items), pool, encoder, times, progress, request)
    progress.close()
    return True


def finish_run(request: BulkRequest, shards: int, summaries: list[dict]) -> dict[str, int]:
    """Writes the index, the failures and the times of a run whose shards are complete. Returns its counts."""
    folder = request.output_dir
    counts = merge_shards(folder, shards, parquet=request.index == "parquet")
    for partial in shard_path(folder, 0).parent.glob(".partial-*"):
        partial.unlink()
    outcome = {"counts": counts} | ({"times": merge_times(summaries)} if summaries else {})
    write_json(folder / METADATA_FILE, {**read_json(folder / METADATA_FILE), **outcome})
    return {**counts, "shards": shards}
