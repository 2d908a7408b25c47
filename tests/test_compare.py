# SPDX-License-Identifier: Apache-2.0
"""What a comparison and a plan say of several cards: each reason once, each advice with its cards, no place without a price."""

from dataclasses import replace

import pytest

from bsmodel.command import compare, compare_page, main, plan
from bsmodel.studies import Goal, Study, study
from tests.test_pages import MINE
from tests.test_trial_page import words

pytest.importorskip("altair")
pytest.importorskip("vl_convert")


@pytest.fixture(scope="module")
def ranked(tape):
    """The row of a plan with hours and a price."""
    (row,) = study([tape], gpus=["a100-40gb"], caching=False, goals=[Goal(samples=10**6, epochs=1)]).rows
    return row


def test_advice_that_is_not_of_all_cards_says_of_which(ranked):
    several = [replace(ranked, gpu=gpu, advice=advice) for gpu, advice in (("a", ("all",)), ("b", ("all", "some")), ("c", ("all", "some")))]
    assert plan._advice(several) == ["Note: all.", "Note: b, c: some."]


def test_money_is_written_out(ranked):
    dear = replace(ranked, timing=replace(ranked.timing, cost_usd=12_345.0, hours=6_789.0))
    assert "6,789 h and 12,345 USD" in words(compare_page.page(ranked.recorded, [dear], {}, [], []))


def test_a_card_without_a_price_has_no_place_by_cost(ranked):
    free = replace(ranked, timing=replace(ranked.timing, price=None, cost_usd=None, usd_per_million=None))
    _, lines = compare.compare_cells([ranked, free])
    assert [line[0] for line in lines] == ["1", "-"]


def test_every_reason_of_a_card_that_is_left_out_is_told_once(ranked):
    def refused(gpu, devices, size):
        parallel = {"parallel": {"kind": "fsdp2", "devices": devices}} if devices > 1 else {}
        verdict = f"does not fit on {gpu}: one sample needs {size} GiB"
        return replace(ranked, gpu=gpu, devices=devices, recipe=parallel, status="does not fit", verdict=verdict)

    none, one = [refused("none", devices, size) for devices, size in ((1, 9), (2, 5), (4, 3), (8, 3))], [refused("single", 1, 9), refused("single", 2, 9)]
    some = [replace(ranked, gpu="some", devices=8), refused("some", 2, 5), refused("some", 4, 3)]
    assert compare._left_out(Study((*none, *one, *some))) == {
        "single": "one sample needs 9 GiB",
        "none alone": "one sample needs 9 GiB",
        "none, fsdp2 over 2": "one sample needs 5 GiB",
        "none, fsdp2 over 4, 8": "one sample needs 3 GiB",
        "some, fsdp2 over 2": "one sample needs 5 GiB",
        "some, fsdp2 over 4": "one sample needs 3 GiB",
    }


@pytest.mark.parametrize("flag", [("--tensor", "2"), ("--param-dtype", "bf16"), ("--wrap", "Block"), ("--reshard-after-forward",)])
def test_what_the_way_to_share_has_not_is_refused_whatever_stands_before_it(flag, capsys, monkeypatch):
    monkeypatch.setattr(compare, "study", None)
    assert main(["compare", MINE, "--devices", "1,8", *flag]) == 2
    assert flag[0].strip("-").replace("-", "_") in capsys.readouterr().err
