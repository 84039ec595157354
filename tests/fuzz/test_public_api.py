# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Whatever is passed to the public API gives a right result or one of our errors. Longer: tests/fuzz/report.py."""

import pytest

from tests.fuzz.outcomes import Tally, documented
from tests.fuzz.public_api import ENTRIES, explore


@pytest.mark.parametrize("name", ENTRIES)
def test_arguments(name):
    tally = explore(name, examples=120)
    print(f"{name}: {tally.tried} tried, {tally.right} right, {tally.refused} refused")
    assert tally.tried >= 60 and tally.right and tally.refused
    assert not tally.findings, "\n".join(tally.findings.values())


class TestJudge:
    """Controls: what must count as a finding does."""

    def test_an_error_from_below_our_code_is_a_finding(self):
        with pytest.raises(AttributeError) as caught:
            _ = None.shape
        assert documented(caught.value).startswith("undocumented AttributeError")
        with pytest.raises(ValueError) as caught:
            int("x")
        assert documented(caught.value).startswith("raised below our code")

    def test_a_wrong_result_and_an_accident_are_findings(self):
        tally = Tally("control")
        assert tally.watch(lambda: _fail()).startswith("wrong result")
        assert tally.watch(lambda: [][0]).startswith("undocumented IndexError")
        assert tally.watch(lambda: None) is None
        assert (tally.tried, tally.right, tally.refused, len(tally.findings)) == (3, 1, 0, 2)


def _fail() -> None:
    raise AssertionError("2 is not 3")
