# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Processes that read ahead of the model are kept at work, as far as there is room."""

import time

import pytest

from examples.extraction import decoding
from examples.extraction.decoding import DecodeOptions, DecoderPool
from examples.extraction.inputs import Item


@pytest.fixture
def waited_for(monkeypatch) -> list[int]:
    """How many processes were reading, each time that the pool waited for some."""
    counts, wait = [], decoding.wait

    def count(connections, timeout):
        counts.append(len(connections))
        return wait(connections, timeout)

    monkeypatch.setattr(decoding, "wait", count)
    return counts


def items(path, count: int) -> list[Item]:
    return [Item(index, str(index), str(path), "image", 8) for index in range(count)]


def test_the_process_that_reads_is_never_left_without_a_file(models, four_files, waited_for, monkeypatch):
    with DecoderPool(DecodeOptions(str(models / "tiny_packing")), 1, 60, ahead=10**9) as pool:
        rested = []
        monkeypatch.setattr(pool._took, "wait", rested.append)
        found = list(pool.results(items(four_files / "1.jpg", 12)))
        assert [item.index for item, _ in found] == list(range(12))
        assert not rested and set(waited_for) == {1} and len(waited_for) >= 12


def test_no_more_is_read_than_there_is_room_for(models, four_files):
    with DecoderPool(DecodeOptions(str(models / "tiny_packing")), 1, 60, ahead=1) as pool:
        given = iter(items(four_files / "1.jpg", 12))
        next(pool.results(given))
        time.sleep(0.5)
        # One that waits, those on their way, and the one that was asked for last.
        assert next(given).index <= 5
