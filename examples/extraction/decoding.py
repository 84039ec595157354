# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Reading images and videos ahead of the model, in processes that can be killed.

A native decoder can hang while it holds Python's lock, deaf to every signal but SIGKILL. So each file is read in a
worker process with a time limit: past it the process is killed and replaced, and only that one file is lost.
"""

import contextlib
import faulthandler
import hashlib
import multiprocessing
import multiprocessing.forkserver
import os
import queue
import re
import signal
import struct
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from transformers import AutoProcessor

from examples.extraction.column_values import only_value, readable, sha256_of_value
from examples.extraction.files import sha256_of_input
from examples.extraction.inputs import Item, kind_of
from examples.extraction.limits import SampleLimits, with_options


STARTUP_SECONDS = 300.0
# After this, what takes too long is looked for.
LONGEST_SLEEP = 0.2
# How long a worker that lost its parent may still hang.
ORPHAN_SECONDS = 60.0
# What reading a damaged file raises; anything else ends the worker, which loses the file just the same.
DECODE_ERRORS = (
    *(OSError, ValueError, TypeError, RuntimeError, SyntaxError, EOFError, MemoryError, struct.error),
    PIL.Image.DecompressionBombError,
)
# Imported once, by the server that workers are forked from, so that a killed one is replaced in milliseconds.
PRELOADED = ("numpy", "PIL.Image", "torch", "transformers.models.auto.processing_auto", "transformers.video_utils")


@dataclass(frozen=True)
class DecodeOptions:
    """How files become inputs of the packing model.

    Attributes:
        model_path: folder or repo id of the model.
        revision: commit of the repo.
        limits: of a sample.
        video_backend: see the processor; `None`: decord, then PyAV.
        selection: `scores` and `top_k` of videos, as the processor takes them.
        hashes: whether to report the hash of the file and that of the pixels.
    """

    model_path: str
    revision: str | None = None
    limits: SampleLimits = SampleLimits()
    video_backend: str | None = None
    selection: dict[str, str | int] = field(default_factory=dict)
    hashes: bool = True


@dataclass(frozen=True)
class Decoded:
    """One sample as the processor makes it: `pixel_values` `(tokens, 3 * P * P)`, `patch_positions` `(tokens, 3)`, and
    the seconds that it took."""

    pixel_values: np.ndarray
    patch_positions: np.ndarray
    grid_thw: list[int]
    report: dict
    seconds: float = 0.0


@dataclass(frozen=True)
class Failure:
    """Why a file gave no sample, and the seconds that it took to find out."""

    error: str
    seconds: float = 0.0


def pixels_digest(pixel_values: np.ndarray) -> str:
    """SHA-256 of the pixels that go into a model, float32 in memory order."""
    return hashlib.sha256(np.ascontiguousarray(pixel_values, dtype="<f4")).hexdigest()


def process(processor, kind: str, source, num_frames: int, options: DecodeOptions) -> Decoded:
    """Makes model inputs of one image or video.

    Args:
        kind: `image` or `video`.
        source: whatever the processor takes for one: a path, frames, an array and so on.
        num_frames: sampled from a video.

    Raises:
        OSError, ValueError, TypeError, RuntimeError: as the processor does.
    """
    arguments = {"return_tensors": "np", "return_metadata": True, **options.limits.arguments()}
    if kind == "image":
        batch = processor(images=[source], **arguments)
    else:
        batch = processor(
            videos=[source],
            num_frames=num_frames,
            video_backend=options.video_backend,
            **options.selection,
            **arguments,
        )
    (report,) = batch["metadata"]
    return Decoded(batch["pixel_values"], batch["patch_positions"], batch["grid_thw"][0].tolist(), report)


def decode(processor, item: Item, options: DecodeOptions) -> Decoded:
    """Reads one file, or what is stored of one, and reports its hash and that of its pixels if they are asked for.

    Raises:
        OSError, ValueError, TypeError, RuntimeError: as the processor does.
    """
    if item.values is None:
        decoded = process(processor, kind_of(item), item.path, item.num_frames, options)
    else:
        kind, value = only_value(item.values)
        with readable(kind, value) as source:
            decoded = process(processor, kind, source, item.num_frames, options)
    if not options.hashes:
        return decoded
    content = sha256_of_input(Path(item.path)) if item.values is None else sha256_of_value(value)
    hashes = {"sha256": content, "pixels_sha256": pixels_digest(decoded.pixel_values)}
    return replace(decoded, report={**decoded.report, **hashes})


def attempt(processor, item: Item, options: DecodeOptions) -> Decoded | Failure:
    """As `decode`, with what reading a damaged file raises as an answer, and the time that it took."""
    start = time.monotonic()
    try:
        answer = decode(processor, item, options)
    except DECODE_ERRORS as error:
        answer = Failure(error_text(error))
    return replace(answer, seconds=time.monotonic() - start)


def _serve(connection: Connection, options: DecodeOptions, timeout: float) -> None:
    """The life of a worker: loads the processor, then answers one file after another until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    options.limits.apply_to_pillow()
    try:
        processor = AutoProcessor.from_pretrained(
            options.model_path, trust_remote_code=True, revision=options.revision
        )
    except (OSError, ValueError, ImportError) as error:
        connection.send(Failure(f"{options.model_path}: the processor does not load: {error}"))
        return
    connection.send(None)
    with open(os.devnull, "w") as nowhere:
        while True:
            try:
                item = connection.recv()
            except (EOFError, ConnectionError):
                return
            # A thread outside Python's lock: it ends this process even if the parent is no longer there to do so.
            faulthandler.dump_traceback_later(timeout + ORPHAN_SECONDS, exit=True, file=nowhere)
            answer = attempt(processor, item, options)
            faulthandler.cancel_dump_traceback_later()
            try:
                connection.send(answer)
            except (BrokenPipeError, ConnectionError):
                return


def error_text(error: BaseException) -> str:
    """What is recorded of a file that gave no sample."""
    # Pillow names the buffer by its address, which says nothing and is never the same twice.
    text = re.sub(r" at 0x[0-9a-f]+", "", with_options(str(error)).strip())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class _Worker:
    """A process that reads files, and what it is doing."""

    def __init__(self, context, options: DecodeOptions, timeout: float):
        self.connection, other_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(other_end, options, timeout), daemon=True)
        self.process.start()
        other_end.close()
        self.ready = False
        self.item: Item | None = None
        self.deadline = time.monotonic() + STARTUP_SECONDS

    def give(self, item: Item, timeout: float) -> None:
        self.item, self.deadline = item, time.monotonic() + timeout
        # A process that has just died is noticed when its answer is read.
        with contextlib.suppress(BrokenPipeError, ConnectionError):
            self.connection.send(item)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def start_server():
    """Starts the process that workers are forked from, where the system has such; returns the context."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    multiprocessing.forkserver.ensure_running()
    return context


class DecoderPool:
    """Reads files in `workers` processes, each file for at most `timeout` seconds.

    What waits for the model is bounded, so memory does not grow with the run: beyond `2 * workers` samples no file is
    read while samples of `ahead` tokens are ready.

        with DecoderPool(options, workers=2, timeout=60) as pool:
            for item, answer in pool.results(items): ...
    """

    def __init__(self, options: DecodeOptions, workers: int, timeout: float, ahead: int = 0):
        self._options, self._timeout, self._count, self._ahead = options, timeout, workers, ahead
        self._context = start_server()
        self._workers: list[_Worker] = []
        self._finished: queue.Queue = queue.Queue()
        # Tokens of all samples that were made ready, and of all that were taken; each is written by one thread only.
        self._made = self._taken = 0
        # Set whenever a sample is taken, which makes room.
        self._took = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "DecoderPool":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes, whatever they are doing."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        for worker in self._workers:
            worker.kill()

    def results(self, items: Iterable[Item]) -> Iterator[tuple[Item, Decoded | Failure]]:
        """Every item with what became of it, in the order of `items`. To be called again only when it has ended.

        Raises:
            RuntimeError: if no worker can start; and whatever `items` raises.
        """
        if self._thread is not None:
            self._thread.join()
        self._thread = threading.Thread(target=self._dispatch, args=(items,), daemon=True)
        self._thread.start()
        while (answer := self._finished.get()) is not None:
            if isinstance(answer, BaseException):
                raise answer
            self._taken += _tokens(answer[1])
            self._took.set()
            yield answer

    def _dispatch(self, items: Iterable[Item]) -> None:
        """Runs beside the model: hands out items, collects answers, kills what takes too long."""
        try:
            self._workers = self._workers or [self._new_worker() for _ in range(self._count)]
            self._hand_out(iter(items))
            self._put(None)
        # Of a thread nobody would see it; `results` raises it where it is seen.
        except BaseException as error:
            self._put(error)

    def _hand_out(self, items: Iterator[Item]) -> None:
        order: deque[Item] = deque()
        answers: dict[int, Decoded | Failure] = {}
        exhausted = False
        while not self._stopping.is_set():
            self._took.clear()
            for index in range(len(self._workers)):
                self._attend(index, answers)
            self._pass_on(order, answers)
            for worker in self._workers:
                if worker.ready and worker.item is None and not exhausted and self._has_room(len(order)):
                    item = next(items, None)
                    exhausted = item is None
                    if not exhausted:
                        order.append(item)
                        self._give(worker, item, answers)
            self._pass_on(order, answers)
            if not order and exhausted:
                return
            # All that can read do so by now.
            if busy := [worker.connection for worker in self._workers if worker.item or not worker.ready]:
                wait(busy, timeout=LONGEST_SLEEP)
            else:
                self._took.wait(LONGEST_SLEEP)

    def _pass_on(self, order: deque[Item], answers: dict[int, Decoded | Failure]) -> None:
        """Makes what is ready, in order, the results."""
        while order and order[0].index in answers:
            item = order.popleft()
            answer = answers.pop(item.index)
            self._made += _tokens(answer)
            # What is stored of it is not kept any longer.
            self._put((item if item.values is None else replace(item, values={}), answer))

    def _give(self, worker: _Worker, item: Item, answers: dict[int, Decoded | Failure]) -> None:
        try:
            worker.give(item, self._timeout)
        except Exception as error:
            # What is in a column may not go to another process, for reasons of its own: a picture that is damaged and
            # not read yet, an object that a row should not hold.
            worker.item, answers[item.index] = None, Failure(error_text(error))

    def _attend(self, index: int, answers: dict[int, Decoded | Failure]) -> None:
        """Takes a worker's message, or gives up on the worker."""
        worker = self._workers[index]
        # The message comes first: a worker may have finished long ago, while the model was busy.
        if worker.connection.poll():
            try:
                message = worker.connection.recv()
            except (EOFError, ConnectionError):
                worker.process.join()
                self._replace(
                    index, f"the process that read it ended with exit code {worker.process.exitcode}", answers
                )
                return
            if not worker.ready:
                if isinstance(message, Failure):
                    raise RuntimeError(message.error)
                worker.ready = True
            else:
                answers[worker.item.index], worker.item = message, None
        elif (worker.item or not worker.ready) and time.monotonic() > worker.deadline:
            self._replace(index, f"reading it took longer than {self._timeout:g} seconds (--decode_timeout)", answers)

    def _replace(self, index: int, reason: str, answers: dict[int, Decoded | Failure]) -> None:
        worker = self._workers[index]
        worker.kill()
        if not worker.ready:
            raise RuntimeError(
                f"a process that reads files did not start: exit code {worker.process.exitcode}. It imports the "
                'script that runs, so what that does by itself belongs below `if __name__ == "__main__":`.'
            )
        if worker.item is not None:
            answers[worker.item.index] = Failure(reason)
        self._workers[index] = self._new_worker()

    def _new_worker(self) -> _Worker:
        return _Worker(self._context, self._options, self._timeout)

    def _put(self, answer) -> None:
        if not self._stopping.is_set():
            self._finished.put(answer)

    def _has_room(self, unfinished: int) -> bool:
        """Whether one more file may be read, beside those that are read and whose turn has not come."""
        waiting = self._finished.qsize()
        return unfinished < 2 * self._count and (waiting < self._count or self._made - self._taken < self._ahead)


def _tokens(answer: Decoded | Failure) -> int:
    return 0 if isinstance(answer, Failure) else len(answer.pixel_values)
