# SPDX-License-Identifier: Apache-2.0
"""Pass or fail: what is worse, by how much that is allowed, which modules it is, and what is refused before any work."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bsmodel
from bsmodel import Allowance, Baseline, InvalidInputError, UnknownNameError
from bsmodel.gate import wording
from bsmodel.gate.verdict import _changes, _grown, _more_bytes
from bsmodel.memory import on_devices
from tests.models import SGD, workload
from tests.test_refusals import line_of


@pytest.fixture(scope="module")
def found(tape, a100):
    return bsmodel.fit(tape, a100)


@pytest.fixture(scope="module")
def baseline(found):
    return Baseline.of(found, 64)


def of(baseline, **figures):
    """The same question with other figures."""
    return baseline.model_copy(update=figures)


# -- a batch that has to train -----------------------------------------------------------------------------------------------------------


def test_the_largest_batch_passes_and_one_more_does_not(found):
    for batch in (1, found.batch):
        assert bsmodel.check(found, require_batch=batch).passes
    beyond = bsmodel.check(found, require_batch=found.batch + 1)

    assert not beyond.passes and beyond.line.startswith("FAILS: small ") and f"largest {found.batch:,}" in beyond.line


@given(st.integers(1, 1 << 18))
def test_what_passes_is_at_most_the_largest_and_survives(found, batch):
    verdict = bsmodel.check(found, require_batch=batch)

    assert verdict.passes == (batch <= found.batch and bsmodel.predict(found.tape, found.gpu, batch).fits)
    assert verdict.line.startswith("fits: small trains at " if verdict.passes else "FAILS: small ")
    assert "\n" not in str(verdict)


def test_a_batch_that_survives_by_luck_or_is_below_the_largest_and_does_not_survive_fails(found):
    """Replays decide both, and what is cached may fit one batch better than a smaller one."""
    beyond = dataclasses.replace(found, batch=10)
    within = dataclasses.replace(found, batch=10 * found.batch)

    assert bsmodel.check(beyond, require_batch=10).passes and not bsmodel.check(beyond, require_batch=20).passes
    assert not bsmodel.check(within, require_batch=5 * found.batch).passes


def test_a_line_names_workload_batch_card_and_memory(found):
    verdict = bsmodel.check(found, require_batch=64)
    used, usable = (f"{size / 2**30:.2f}" for size in (verdict.required.peak.reserved_bytes, found.gpu.usable_bytes))

    assert verdict.line.startswith("fits: small trains at a micro-batch of 64 on a100-40gb (largest ") and f"{used} of {usable} GiB)" in verdict.line


def test_of_several_devices_the_line_says_how_many(tape, a100):
    verdict = bsmodel.check(bsmodel.fit(on_devices(tape, 8), a100), require_batch=8)

    assert "on 8 x a100-40gb (" in verdict.line


def test_nothing_to_check_is_refused(found):
    with pytest.raises(InvalidInputError, match="nothing is to be checked"):
        bsmodel.check(found)


# -- a baseline --------------------------------------------------------------------------------------------------------------------------


def test_a_baseline_holds_against_itself_with_nothing_allowed(found, baseline):
    verdict = bsmodel.check(found, against=baseline, allow="0%")

    assert verdict.passes and [change.direction for change in verdict.changes] == ["the same"] * 3 and not verdict.notes
    assert verdict.line.count("as before") == 3 and str(verdict) == verdict.line


def test_a_baseline_is_what_predict_fit_step_time_and_breakdown_say(found, baseline):
    peak, shares = bsmodel.predict(found.tape, found.gpu, 64), bsmodel.breakdown(found.tape, 64, gpu=found.gpu)

    assert (baseline.allocated_bytes, baseline.largest_batch, baseline.batch) == (peak.allocated_bytes, found.batch, 64)
    assert baseline.seconds == pytest.approx(bsmodel.step_time(found.tape, found.gpu, 64).seconds, rel=1e-8)
    assert sum(baseline.by_module.values()) == sum(baseline.by_category.values()) == sum(share.bytes for share in shares) == peak.requested_bytes


def test_a_baseline_is_read_as_it_was_written_and_the_same_figures_are_the_same_file(found, baseline, tmp_path):
    baseline.save(tmp_path / "one.json")
    Baseline.of(found, 64).save(tmp_path / "two.json")

    assert Baseline.load(tmp_path / "one.json") == baseline
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert [*json.loads((tmp_path / "one.json").read_text())["by_module"]] == sorted(baseline.by_module)


@pytest.mark.parametrize("field", ["allocated_bytes", "largest_batch", "seconds"])
def test_each_measure_fails_alone_and_when_better_asks_for_a_new_baseline(found, baseline, field):
    better, worse = (0.9, 1.1) if field != "largest_batch" else (1.1, 0.9)
    now = getattr(baseline, field)
    number = int if field != "seconds" else float

    failing = bsmodel.check(found, against=of(baseline, **{field: number(now / worse)}))
    assert not failing.passes and [change.direction for change in failing.changes].count("worse") == 1 and failing.line.count("allowed") == 1

    passing = bsmodel.check(found, against=of(baseline, **{field: number(now / better)}))
    assert passing.passes and passing.line.startswith("holds: ") and "renew it" in passing.notes[-1]


shares = st.floats(0, 0.5)


@given(before=st.integers(1, 1 << 40), after=st.integers(1, 1 << 40), few=st.integers(0, 5000), more=st.integers(0, 5000), share=shares)
def test_worse_and_better_are_never_both_and_allowing_more_fails_no_more(baseline, before, after, few, more, share):
    first, now = of(baseline, allocated_bytes=before, largest_batch=few), of(baseline, allocated_bytes=after, largest_batch=more)
    tight, loose = ([change.direction for change in _changes(first, now, Allowance(*[each] * 3))] for each in (share / 2, share))
    back = [change.direction for change in _changes(now, first, Allowance(0, 0, 0))]

    assert all(one == "worse" or two != "worse" for one, two in zip(tight, loose, strict=True))
    assert all(one != "worse" or two == "better" for one, two in zip(tight, back, strict=True))  # what is worse one way is better the other way


@pytest.mark.parametrize(("share", "least"), [(0, 71), (0.001, 70), (0.01, 70), (0.02, 69), (0.5, 35)])
def test_of_a_largest_batch_a_part_of_a_sample_is_a_whole_one(baseline, share, least):
    for now in range(30, 72):
        change = [*_changes(of(baseline, batch=1, largest_batch=71), of(baseline, largest_batch=now), Allowance(batch=share))][1]
        assert (change.direction == "worse") == (now < least)


def test_the_batch_of_the_baseline_has_to_train_whatever_else_is_allowed(baseline):
    before = of(baseline, batch=100, largest_batch=100)
    for now, direction in ((99, "worse"), (100, "the same")):
        change = [*_changes(before, of(before, largest_batch=now), Allowance(batch=0.5))][1]
        assert (change.direction, change.allowed) == (direction, 100)
    assert [*_changes(of(before, batch=101), of(before, largest_batch=99), Allowance(batch=0.5))][1].direction == "the same"  # which never did


@pytest.mark.parametrize("hundredths", range(1, 100))
def test_shares_are_those_that_are_written(baseline, hundredths):
    """5 at 7 % may be 4.65 times a hundred: 465, and not 464."""
    allowed = Allowance.parse(f"{hundredths}%")
    before = of(baseline, batch=1, largest_batch=500, allocated_bytes=500)
    memory, largest, _ = _changes(before, before, allowed)

    assert (largest.allowed, memory.allowed) == (500 - 5 * hundredths, 500 + 5 * hundredths)
    assert next(_changes(before, of(before, allocated_bytes=500 + 5 * hundredths), allowed)).direction == "the same"
    assert Allowance.parse(f"0.{hundredths}%") == Allowance.parse(f"0.00{hundredths}")


def test_a_training_that_does_not_fit_is_no_baseline(found, tmp_path):
    assert "does not train at a micro-batch of" in line_of(Baseline.of(found, found.batch + 1).save, tmp_path / "baseline.json")
    assert not any(tmp_path.iterdir())


def test_sizes_that_round_alike_are_told_apart(baseline):
    said = line_of(baseline.require_same, memory_bytes=baseline.memory_bytes + 1)
    assert f"{baseline.memory_bytes:,} bytes, and {baseline.memory_bytes + 1:,} bytes is asked" in said


def test_a_change_of_the_model_is_named_by_module(a100, baseline):
    from torch import nn

    def wider():
        model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(inplace=True), nn.Dropout(0.1), nn.Flatten())
        return model.append(nn.Linear(32 * 256, 10)).append(nn.Identity()).append(nn.Linear(10, 10))

    now = bsmodel.fit(bsmodel.trace(workload(wider), SGD, a100), a100)
    verdict = bsmodel.check(now, against=baseline)
    grown = {growth.name: growth for growth in verdict.modules}

    assert not verdict.passes and not verdict.categories
    assert [growth.bytes for growth in verdict.modules] == sorted((growth.bytes for growth in verdict.modules), reverse=True)
    assert grown["7"].before_bytes is None and grown["0"].before_bytes < grown["0"].after_bytes  # a new layer, and the one that is wider
    assert all(growth.after_bytes - (growth.before_bytes or 0) == growth.bytes > 0 for growth in verdict.modules)
    named = [line.strip().partition(":")[0] for line in str(verdict).splitlines()[1:]]
    assert verdict.modules[0].name in named and "  7: new, " in str(verdict)


def test_where_no_module_grew_the_category_is_named_and_where_none_did_it_is_said(found, baseline):
    renamed = of(baseline, allocated_bytes=baseline.allocated_bytes // 2, by_category={**baseline.by_category, "saved": 0})
    assert [growth.name for growth in bsmodel.check(found, against=renamed).categories] == ["saved"]

    gone = of(renamed, by_module={**baseline.by_module, "old": 8})
    verdict = bsmodel.check(found, against=gone)
    assert [growth.name for growth in verdict.modules] == ["old"] and [growth.name for growth in verdict.categories] == ["saved"]
    assert "\n  gone: old\n" in str(verdict) and "\n  saved: 0 B -> " in str(verdict)

    caching = bsmodel.check(found, against=of(baseline, largest_batch=2 * baseline.largest_batch))
    assert not caching.modules and not caching.categories and "rounding and caching" in str(caching)


sizes = st.dictionaries(st.sampled_from([f"layers.{number}.{name}" for number in range(4) for name in ("mlp", "norm")] + ["", "head"]), st.integers(1, 1000))


@given(sizes, sizes)
def test_growth_adds_up_and_every_module_is_told_of_once(baseline, before, after):
    grown = _more_bytes(before, after)
    more = [growth for growth in grown if growth.bytes > 0]

    assert sum(growth.bytes for growth in more) == sum(max(0, size - before.get(name, 0)) for name, size in after.items())
    assert {growth.name for growth in grown if growth.after_bytes is None} == {*before} - {*after}
    assert len({growth.name for growth in grown}) == len(grown)
    modules, categories = _grown(of(baseline, by_module=before), of(baseline, by_module=after))
    assert modules == grown and (more or modules) is not None and (not categories or not more)


def test_layers_that_are_alike_are_one_line_and_many_lines_are_cut(found, baseline):
    kept = dict.fromkeys(baseline.by_module, 1)
    gone = {f"old.{number}.mlp": 5 for number in range(12)}
    first = of(baseline, allocated_bytes=1, by_module={**gone, **{f"way{letter}": 5 for letter in "abcdefgh"}, **kept})
    text = str(bsmodel.check(found, against=first))

    assert "old.*.mlp (12 modules)" in text and "waye" in text and "wayh" not in text and "and 3 more" in text
    assert len(text.splitlines()) <= 1 + 7 + 1 + 1


def test_where_only_time_is_worse_no_module_is_named(found, baseline):
    verdict = bsmodel.check(found, against=of(baseline, seconds=baseline.seconds / 2, by_module={}))

    assert not verdict.passes and str(verdict) == verdict.line and "step time" in verdict.line


def test_what_may_be_anything_is_one_line_only_where_it_is_the_same(baseline):
    """The third of `features` need not be like the fifth; blocks of one name in numbered layers are."""
    sizes = {"features.0": 8, "features.3": 8, "features.6": 9, "0": 5, "1": 5, "h.0.mlp": 1, "h.1.mlp": 2}
    before = of(baseline, allocated_bytes=1, by_module={name: 2 * size for name, size in sizes.items()})
    rows = [line.partition(":")[0].strip() for line in below(before, of(baseline, by_module={name: 3 * size for name, size in sizes.items()}))]

    assert rows == ["features.* (2 modules)", "features.6", "0", "1", "h.*.mlp (2 modules)"]


def below(before, after):
    """The rows of what grew."""
    return wording._grown("module", _more_bytes(before.by_module, after.by_module))


def test_other_versions_are_compared_and_noted(found, baseline):
    other = of(baseline, versions={"bsmodel": bsmodel.__version__, "torch": "1.13", "timm": "1.0"})
    verdict = bsmodel.check(found, against=other)

    assert verdict.passes and len(verdict.notes) == 2
    assert "with torch 1.13, and it is 2." in str(verdict) and "with timm 1.0, and it is absent now" in str(verdict)


def test_a_card_without_rates_has_no_step_time_and_says_so(tape, a100, baseline):
    bare = a100.model_copy(
        update={
            "bandwidth_bytes_per_s": None,
            "bandwidth_efficiency": None,
            "sources": tuple(kept for source in a100.sources if (kept := _without(source, "bandwidth_bytes_per_s", "bandwidth_efficiency"))),
        }
    )
    now = bsmodel.fit(tape, bare)
    verdict = bsmodel.check(now, against=baseline)

    assert Baseline.of(now, 64).seconds is None and verdict.passes and len(verdict.changes) == 2
    assert verdict.notes == ("step time is not compared: none can be predicted for a100-40gb",)


def _without(source, *figures):
    for figure in figures:
        source = source and source.without(figure)
    return source


# -- another question is refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("workload", "another", "workload 'another', and 'small'"),
        ("gpu", "h100-80gb", "gpu 'h100-80gb', and 'a100-40gb'"),
        ("devices", 8, "devices 8, and 1"),
        ("headroom_bytes", 1 << 30, "headroom 1.00 GiB, and 0 B"),
        ("options", {"seq_len": 64}, "seq-len 64, and none"),
        ("allocator", "expandable_segments:True", "allocator 'expandable_segments:True', and ''"),
    ],
)
def test_a_baseline_of_another_question_is_refused(found, baseline, field, value, said):
    with pytest.raises(InvalidInputError, match=f"the baseline has {said} is asked: that is another question"):
        bsmodel.check(found, against=of(baseline, **{field: value}))


def test_a_recipe_is_the_same_where_its_fields_are_and_new_fields_are_as_by_default(found, baseline):
    older = {name: value for name, value in baseline.recipe.items() if name not in ("ema", "float8")}
    assert bsmodel.check(found, against=of(baseline, recipe=older)).passes

    for name, value in (("precision", "bf16-mixed"), ("ema", True), ("optimizer", "adamw"), ("accumulation", 2)):
        with pytest.raises(InvalidInputError, match=f"the baseline has {name} "):
            bsmodel.check(found, against=of(baseline, recipe={**baseline.recipe, name: value}))


def broken(baseline, **update):
    return json.dumps({**json.loads(baseline.model_dump_json()), **update})


@pytest.mark.parametrize(
    ("update", "said"),
    [
        ({"schema_version": 2}, "schema_version is 2; expected 1"),
        ({"allocated_bytes": -1}, "allocated_bytes is -1"),
        ({"allocated_bytes": 1.5}, "allocated_bytes is 1.5"),
        ({"seconds": 0}, "seconds is 0"),
        ({"batch": "8"}, "batch is '8'"),
        ({"by_module": {"a": None}}, "by_module.a is None"),
        ({"colour": "red"}, "colour is 'red'"),
    ],
)
def test_a_file_that_is_no_baseline_is_one_line_that_names_the_field(baseline, update, said, tmp_path):
    path = tmp_path / "baseline.json"
    path.write_text(broken(baseline, **update))
    with pytest.raises(InvalidInputError) as refusal:
        Baseline.load(path)

    assert said in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", b"NaN"])
def test_a_file_that_is_no_json_is_one_line(content, tmp_path):
    path = tmp_path / "baseline.json"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"the baseline .*baseline\.json") as refusal:
        Baseline.load(path)
    assert "\n" not in str(refusal.value)


# -- allowances --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "allowance"),
    [
        ("1%", Allowance(0.01, 0.01, 0.01)),
        ("0.05", Allowance(0.05, 0.05, 0.05)),
        ("0", Allowance(0, 0, 0)),
        (" 2.5 % ", Allowance(0.025, 0.025, 0.025)),
        ("memory=2%", Allowance(memory=0.02)),
        ("memory=2%, time=200%,batch=0", Allowance(0.02, 0, 2)),
    ],
)
def test_an_allowance_is_a_share_or_shares_by_name(text, allowance):
    assert dataclasses.astuple(Allowance.parse(text)) == pytest.approx(dataclasses.astuple(allowance))


@pytest.mark.parametrize("text", ["", "1", "1.5", "-1%", "nan", "inf%", "one", "%", "1%%", "memory", "memory=", "memory=1%,memory=2%", "batch=100%", "time=2,"])
def test_what_is_no_allowance_is_refused(text):
    with pytest.raises((InvalidInputError, UnknownNameError)) as refusal:
        Allowance.parse(text)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, True, "1", None])
def test_fields_of_an_allowance_are_read_as_every_number_is(value):
    for name in ("memory", "batch", "time"):
        with pytest.raises(InvalidInputError, match=f"allowance of {name} is "):
            Allowance(**{name: value})
    with pytest.raises(UnknownNameError, match="nearest: memory"):
        Allowance.parse("memmory=1%")
