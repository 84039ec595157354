# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The extraction of many files on a Ray cluster: its actors write shards, the same bytes as one process does.

Ray alone schedules: it starts as many actors as there is room for within bounds, and gives the shard of one that died
to another. A shard is a block of Ray's; those that are complete are not asked for again, so a stopped job continues.
The clone, the model, the inputs and the output folder are at the same paths on all machines.
"""

import json
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import groupby

import torch

from examples.extraction.bulk_extraction import (
    Progress,
    check_formats,
    describe_run,
    encoder_and_pool,
    finish_run,
    prepare_folder,
    write_shards,
)
from examples.extraction.encoding import default_pack_tokens, load_packing_model
from examples.extraction.files import exclusive
from examples.extraction.inputs import Item, collect_inputs
from examples.extraction.limits import check_positive
from examples.extraction.provenance import LocatedModel, check_model_name, locate_model
from examples.extraction.requests import BulkRequest
from examples.extraction.shards import is_complete
from examples.extraction.sources import list_inputs
from examples.extraction.stage_times import StageTimes


@dataclass(frozen=True, kw_only=True)
class Actors:
    """What Ray's actors are.

    Attributes:
        min_actors, max_actors: how many there are at least and at most; between them Ray decides.
        num_cpus, num_gpus: that Ray reserves for each; with GPUs below 1 several share one.
    """

    min_actors: int = 1
    max_actors: int = 1
    num_cpus: float = 1
    num_gpus: float = 0

    def __post_init__(self):
        check_positive("min_actors", self.min_actors)
        if self.max_actors < self.min_actors:
            raise ValueError(f"--max_actors must be at least --min_actors={self.min_actors}, found {self.max_actors}.")
        for name in ("num_cpus", "num_gpus"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"--{name} must not be negative, found {getattr(self, name):g}.")

    @property
    def resources(self) -> dict[str, float]:
        """As Ray names them."""
        return {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}


class ShardExtractor:
    """Extracts shards in an actor.

    Args:
        located: the model as the driver found it; of a repo, this machine fetches the same commit.
    """

    def __init__(self, request: BulkRequest, located: LocatedModel):
        self._request, self._times = request, StageTimes(request.workers)
        model, located = _load(request, located)
        self._encoder, self._pool = encoder_and_pool(model, located, self._times, request)
        self._progress = Progress(None, 0, self._times, shown=False)
        self._name = f"{socket.gethostname()}:{os.getpid()}"

    def __call__(self, batch: Mapping[str, Sequence]) -> dict[str, list]:
        """Writes the shards of a batch, whose `items` are JSON. Returns who did it, and its times so far."""
        for content in batch["items"]:
            items = (Item(**fields) for fields in json.loads(content))
            write_shards(items, self._pool, self._encoder, self._times, self._progress, self._request)
        rows = len(batch["items"])
        return {"actor": [self._name] * rows, "times": [json.dumps(self._times.summary())] * rows}


def _device(request: BulkRequest) -> torch.device:
    return torch.device(request.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _load(request: BulkRequest, located: LocatedModel):
    if located.commit is not None:
        found = locate_model("packing_model_path", located.name, located.commit)
        located = replace(found, revision=located.revision)
    model, _ = load_packing_model(
        located, request.layers, request.dtype, request.attn_implementation, _device(request)
    )
    return model, located


def _describe(request: BulkRequest, located: LocatedModel, source) -> tuple[BulkRequest, dict]:
    """The request with what depends on the actors' machine, and the run's description."""
    if request.pack_tokens is None:
        request = replace(request, pack_tokens=default_pack_tokens(_device(request)))
    return request, describe_run(*_load(request, located), source, request)


def extract_with_ray(request: BulkRequest, actors: Actors) -> dict[str, int]:
    """Extracts features of all files, or what is missing of them, on the Ray that this process is connected to.

    Returns:
        The run's counts of `samples`, `failures`, `tokens` and `shards`.

    Raises:
        ValueError: for inputs or a model that cannot be, and for another run in the folder.
        ImportError: without Ray, or for Parquet without pyarrow.
        OSError: if the model cannot be had.
        RuntimeError: if an actor fails for good.
    """
    ray = import_ray()
    if request.inputs is None:
        raise ValueError("--inputs says what the actors read. For datasets, see LlavaViTEmbedder.")
    check_model_name("packing_model_path", request.packing_model[0])
    check_formats(request)
    items = collect_inputs([str(entry) for entry in request.inputs], request.num_frames, request.file_limits)
    located = locate_model("packing_model_path", *request.packing_model)
    with ExitStack() as held:
        held.enter_context(exclusive(request.output_dir))
        source = list_inputs(items, request)
        # Where an actor would be, as the device is part of the description.
        described = ray.remote(**actors.resources)(_describe).remote(request, located, source)
        try:
            request, run = ray.get(described)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        prepare_folder(run, source, request)
        missing = [
            {"items": json.dumps([asdict(item) for item in shard])}
            for _, shard in groupby(
                source.walk(lambda shard: not is_complete(request.output_dir, shard)), key=lambda item: item.shard
            )
        ]
        summaries = _extract(ray, missing, request, located, actors) if missing else {}
        return finish_run(request, source.shards, list(summaries.values()))


def _extract(ray, missing: list[dict], request: BulkRequest, located: LocatedModel, actors: Actors) -> dict[str, dict]:
    """Has the shards written. Returns the times of each actor."""
    blocks = ray.data.from_items(missing, override_num_blocks=len(missing))
    written = blocks.map_batches(
        ShardExtractor,
        fn_constructor_kwargs={"request": request, "located": located},
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(min_size=actors.min_actors, max_size=actors.max_actors),
        **actors.resources,
    )
    summaries = {}
    try:
        for row in written.iter_rows():
            times = json.loads(row["times"])
            # Of an actor the last counts, in whatever order they come.
            if times["passed"] > summaries.get(row["actor"], {"passed": 0})["passed"]:
                summaries[row["actor"]] = times
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"an actor failed: {str(error).strip().splitlines()[-1]}") from error
    return summaries


def import_ray():
    """Ray with its Data, or an ImportError that says how to get it."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError("Ray is not installed (pip install 'ray[data]').") from error
    return ray
