# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Features of any number of images and videos with the packing model: packed, on any number of processes, resumable.

The inputs are cut into shards of consecutive items; a shard is the unit of everything. Accelerate's processes take
turns at shards, a killed run continues with the shards that are not complete, and what shares a forward pass is
decided within a shard. So neither the number of processes nor how often a run was killed changes a single bit.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta

import torch
from accelerate import PartialState
from tqdm import tqdm
from transformers import AutoConfig, AutoModel, AutoProcessor

from examples.extraction.decoding import Decoded, DecodeOptions, DecoderPool, Failure, start_server
from examples.extraction.feature_sets import METADATA_FILE
from examples.extraction.files import exclusive, read_json, write_json
from examples.extraction.inputs import Item, collect_inputs, inputs_digest
from examples.extraction.limits import SampleLimits, limits_of
from examples.extraction.packing_plan import pack_inputs, plan_packs
from examples.extraction.provenance import describe_device, describe_model, versions
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


# Large packs keep an accelerator busy; on a CPU they only leave its cache.
PACK_TOKENS = {"cpu": 2048, "accelerator": 16384}
# Samples wait for each other until they fill this many packs.
PACKS_PER_WINDOW = 4
# Processes wait for the slowest at the end; the default of torch is minutes.
LONGEST_WAIT = timedelta(weeks=8)
REPORTED = (
    *("kind", "width", "height", "grid_thw", "frame_indices", "temporal_positions", "timestamps", "fps"),
    *("total_frames", "decoder", "decoder_fallback", "sha256", "pixels_sha256"),
)


class StrictError(ValueError):
    """A file gave no sample, and the run was to stop at the first."""


def parse_layers(text: str) -> list[int | str]:
    """`-2,-1,pooler` to `[-2, -1, "pooler"]`.

    Raises:
        ValueError: for an empty list, a layer named twice, and what is neither an integer nor `pooler`.
    """
    names = [name.strip() for name in text.split(",")]
    try:
        layers = [name if name == "pooler" else int(name) for name in names]
    except ValueError:
        raise ValueError(f"--layers {text}: expected integers and pooler, separated by commas.") from None
    if len(set(layers)) != len(layers):
        raise ValueError(f"--layers {text}: a layer is named twice.")
    return layers


def check_layers(layers: list[int | str], config) -> None:
    """Compares the layers with a model's configuration, before its weights are read.

    Raises:
        ValueError: for a hidden state or a pooling head that the model has not.
    """
    count = config.num_hidden_layers + 1
    for layer in layers:
        if layer != "pooler" and not -count <= layer < count:
            raise ValueError(
                f"--layers {layer}: the model has {count} hidden states; expected {-count} to {count - 1}, or pooler."
            )
    if "pooler" in layers and not config.use_head:
        raise ValueError("--layers pooler: the model has no pooling head (use_head is false in its config.json).")


class Encoder:
    """The packing model and what is asked of it.

    Args:
        layers: as the model's `vision_feature_layer`.
        save_dtype: of the features that come out.
    """

    def __init__(self, model, processor, layers: list[int | str], pack_tokens: int, save_dtype: torch.dtype):
        self._model, self._processor, self._layers = model, processor, layers
        self._pack_tokens, self._save_dtype = pack_tokens, save_dtype

    def encode(self, window: list[tuple[Item, Decoded]]) -> Iterator[tuple[Item, Decoded, dict[str, torch.Tensor]]]:
        """Features of every sample by layer, on the CPU: `(t, h, w, C)`, and `(C,)` for the pooler."""
        for pack in plan_packs([len(decoded.pixel_values) for _, decoded in window], self._pack_tokens):
            samples = [window[index] for index in pack]
            features = self._forward([decoded for _, decoded in samples])
            for place, (item, decoded) in enumerate(samples):
                yield item, decoded, {layer: values[place] for layer, values in features.items()}

    @torch.inference_mode()
    def _forward(self, samples: list[Decoded]) -> dict[str, list[torch.Tensor]]:
        batch = pack_inputs(samples)
        # The lengths are read from the host's copies, so these stay there.
        on_device = {name: batch[name].to(self._model.device) for name in ("pixel_values", "patch_positions")}
        try:
            output = self._model(**{**batch, **on_device}, vision_feature_layer=self._layers)
        except torch.OutOfMemoryError as error:
            tokens = len(batch["pixel_values"])
            raise RuntimeError(f"a pack of {tokens} tokens does not fit in memory. Lower --pack_tokens.") from error
        states = iter(output.hidden_states or ())
        features = {}
        for layer in self._layers:
            if layer == "pooler":
                features[layer] = list(self._to_host(output.pooler_output))
            else:
                features[str(layer)] = self._processor.split_features(self._to_host(next(states)), batch["grid_thw"])
        return features

    def _to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to("cpu", self._save_dtype)


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
    shards: dict[int, list[Item]], pool: DecoderPool, encoder: Encoder, progress: Progress, options: argparse.Namespace
) -> None:
    """Extracts and writes shards, one after another, while the pool reads ahead.

    Raises:
        StrictError: with `--strict`, at the first file that gives no sample.
    """
    answers = pool.results(item for items in shards.values() for item in items)
    window_tokens = PACKS_PER_WINDOW * options.pack_tokens
    for shard, items in shards.items():
        writer = ShardWriter(options.output_dir, shard, options.format)
        window, tokens = [], 0
        for place, (item, answer) in enumerate(_take(answers, len(items)), start=1):
            if isinstance(answer, Failure):
                _fail(writer, item, answer.error, options, progress)
            else:
                window.append((item, answer))
                tokens += len(answer.pixel_values)
            if window and (tokens >= window_tokens or place == len(items)):
                for sample in encoder.encode(window):
                    _add(writer, *sample, options, progress)
                window, tokens = [], 0
        writer.finish()


def _take(answers: Iterator, count: int) -> Iterator:
    for _ in range(count):
        yield next(answers)


def _add(writer: ShardWriter, item: Item, decoded: Decoded, features: dict, options, progress: Progress) -> None:
    if not all(bool(torch.isfinite(values).all()) for values in features.values()):
        _fail(writer, item, f"features of dtype {options.dtype} hold NaN or infinity; try float32", options, progress)
        return
    tokens = len(decoded.pixel_values)
    report = {name: decoded.report[name] for name in REPORTED if name in decoded.report}
    writer.add(item.index, {"id": item.id, "path": os.path.abspath(item.path), "tokens": tokens, **report}, features)
    progress.add(tokens=tokens)


def _fail(writer: ShardWriter, item: Item, error: str, options, progress: Progress) -> None:
    if options.strict:
        raise StrictError(f"{item.path}: {error}")
    writer.fail(item.index, {"id": item.id, "path": os.path.abspath(item.path), "error": error})
    progress.add(failures=1)


def _load(options: argparse.Namespace, device: torch.device):
    loading = {"trust_remote_code": True, "revision": options.revision}
    processor = AutoProcessor.from_pretrained(options.packing_model_path, **loading)
    if "grid_thw" not in processor.model_input_names:
        raise ValueError(
            f"--packing_model_path {options.packing_model_path}: this is a dense model; inputs of many sizes need a "
            "packing one. conversion/convert_vit_preview_v0_hf_to_packing.py makes it from the dense folder."
        )
    check_layers(options.layers, AutoConfig.from_pretrained(options.packing_model_path, **loading))
    dtype = getattr(torch, options.dtype)
    model = AutoModel.from_pretrained(
        options.packing_model_path, dtype=dtype, attn_implementation=options.attn_implementation, **loading
    )
    return model.to(device).eval(), processor


def describe_run(model, items: list[Item], options: argparse.Namespace) -> dict:
    """Everything that the features depend on. A run only continues if it is all the same."""
    return {
        "feature": f"hidden_states{json.dumps(options.layers)}",
        "layers": [str(layer) for layer in options.layers],
        "inputs": {"count": len(items), "sha256": inputs_digest(items)},
        **{name: getattr(options, name) for name in ("dtype", "save_dtype", "format", "shard_size")},
        # The name that folders of earlier versions have, too.
        "max_tokens": options.pack_tokens,
        **{name: getattr(options, name) for name in ("max_sample_tokens", "max_image_pixels", "max_frames")},
        "video_backend": options.video_backend,
        **describe_device(model.device),
        "versions": versions(),
        "models": {"packing": describe_model(model, options.packing_model_path, options.revision)},
    }


def _prepare_folder(run: dict, options: argparse.Namespace) -> None:
    """Starts a run in the output folder, or makes sure that it continues the one that is there.

    Raises:
        ValueError: if the folder holds another run.
    """
    folder = options.output_dir
    path = folder / METADATA_FILE
    if options.overwrite:
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


def run(options: argparse.Namespace) -> int:
    """Extracts features of all of `options.inputs`. Returns the exit code.

    Raises:
        ValueError: for options that cannot be, another run in the folder, finished or at work, and with `--strict` a
            file without a sample.
        RuntimeError: if a pack does not fit in memory, or no reading process starts.
    """
    on_cpu = options.device == "cpu"
    state = PartialState(cpu=on_cpu, timeout=LONGEST_WAIT)
    device = torch.device(options.device) if options.device and state.num_processes == 1 else state.device
    device = torch.device("cpu") if on_cpu else device
    options.pack_tokens = options.pack_tokens or PACK_TOKENS["cpu" if device.type == "cpu" else "accelerator"]
    if options.index == "parquet":
        import_pyarrow()
    start_server()
    items = collect_inputs(options.inputs, options.num_frames, limits_of(options))
    # One process at a time: transformers copies the model's code into a cache that they share.
    with state.local_main_process_first():
        model, processor = _load(options, device)
    with ExitStack() as held:
        if state.is_main_process:
            # Held by the one process for all of its run's.
            held.enter_context(exclusive(options.output_dir))
            _prepare_folder(describe_run(model, items, options), options)
        state.wait_for_everyone()

        all_shards = cut_into_shards(items, options.shard_size)
        # In turns, as videos often come last in a list and would all fall to the last process.
        mine = dict(list(enumerate(all_shards))[state.process_index :: state.num_processes])
        missing = {shard: part for shard, part in mine.items() if not is_complete(options.output_dir, shard)}
        total, left = (sum(map(len, part.values())) for part in (mine, missing))
        encoder = Encoder(model, processor, options.layers, options.pack_tokens, getattr(torch, options.save_dtype))
        limits = SampleLimits(options.max_sample_tokens, options.max_image_pixels, options.max_frames)
        decoding = DecodeOptions(options.packing_model_path, options.revision, limits, options.video_backend)
        progress = Progress(total, total - left, shown=state.is_main_process)
        if missing:
            with DecoderPool(decoding, options.workers, options.decode_timeout) as pool:
                write_shards(missing, pool, encoder, progress, options)
        progress.close()
        state.wait_for_everyone()
        counts = _finish(options, len(all_shards)) if state.is_main_process else {"samples": 1}
        state.wait_for_everyone()
        return 0 if counts["samples"] else 1


def is_main_process() -> bool:
    """Whether this is the process that reports and publishes."""
    return PartialState().is_main_process


def _finish(options: argparse.Namespace, shards: int) -> dict[str, int]:
    folder = options.output_dir
    counts = merge_shards(folder, shards, parquet=options.index == "parquet")
    for partial in shard_path(folder, 0).parent.glob(".*.partial"):
        partial.unlink()
    write_json(folder / METADATA_FILE, {**read_json(folder / METADATA_FILE), "counts": counts})
    print(
        f"{folder}: features of {counts['samples']} samples, {counts['tokens']} tokens, in {shards} shards; "
        f"{counts['failures']} failures"
    )
    if counts["failures"]:
        print(f"see {folder / FAILURES_FILE}", file=sys.stderr)
    return counts
