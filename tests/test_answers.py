# SPDX-License-Identifier: Apache-2.0
"""Answers are plain frozen values that pydantic writes, describes and reads, and numbers are Python's own."""

import dataclasses
import json
import math
import subprocess
import sys

import jsonschema
import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

import bsmodel
from bsmodel import Envelope, Fit, Footprint, ModuleRow, OperatorRow, Peak, Plan, Polynomial, Price, Settings, StepTime
from bsmodel.memory import Moment, Share
from bsmodel.planning import Rung, Split, Timing
from bsmodel.timing.step import Array, Counts

WRITTEN_ONLY = {Fit, Plan}  # they hold the tape, which has a form of its own: `Tape.save`
KINDS = [
    *(Peak, Fit, Footprint, Envelope, Polynomial, Moment, Share, Settings, ModuleRow, OperatorRow),
    *(StepTime, StepTime[int, float], Plan, Split, Timing, Price, Rung),
]
GOAL = {"target_batch": 64, "devices": 2, "samples": 10_000, "epochs": 3.0, "base_lr": 0.1, "base_batch": 256}


@pytest.fixture(scope="module")
def answers(tape, a100):
    """One value of every kind, by kind."""
    form, fit = bsmodel.footprint(tape), bsmodel.fit(tape, a100, settings=Settings(roundup_power2_divisions=4))
    plan = bsmodel.plan(fit, **GOAL, price=Price(1.25, "mine"))
    values = [
        *(fit, fit.peak, fit.settings, form, form.envelope, form.envelope.polynomials[0], form.moments[0], bsmodel.breakdown(tape, 8)[0]),
        *(plan, plan.split, plan.timing, plan.timing.price, plan.timing.step, bsmodel.ladder(fit)[0]),
        *(bsmodel.by_module(tape, 8)[0], bsmodel.by_operator(tape, 8)[0]),
    ]
    return {**{type(value): value for value in values}, StepTime[int, float]: plan.timing.step}


def refuse(name):
    raise AssertionError(f"{name} is no JSON")


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_an_answer_is_written_as_its_schema_says_and_read_back_equal(answers, kind):
    adapter, value = TypeAdapter(kind), answers[kind]
    text = adapter.dump_json(value)
    document = json.loads(text, parse_constant=refuse)

    jsonschema.validate(document, adapter.json_schema(mode="serialization"))
    assert dataclasses.is_dataclass(value) and value.__dataclass_params__.frozen
    if kind not in WRITTEN_ONLY:
        assert adapter.validate_json(text) == value


def test_a_fit_names_its_card_and_leaves_the_tape_out(answers):
    document = TypeAdapter(Plan).dump_python(answers[Plan], mode="json")
    schema = TypeAdapter(Fit).json_schema(mode="serialization")

    assert document["fit"]["gpu"] == "a100-40gb" and "tape" not in document["fit"]
    assert schema["properties"]["gpu"]["type"] == "string" and "tape" not in schema["properties"]
    assert document["timing"]["step"]["seconds"] == answers[StepTime].seconds


@pytest.mark.parametrize("kind", [StepTime, StepTime[Counts, Array]], ids=["any", "arrays"])
@pytest.mark.parametrize("batches", [[1, 2, 300], [[1, 2], [3, 4]]], ids=["list", "grid"])
def test_arrays_are_lists_in_json(tape, a100, kind, batches):
    adapter, times = TypeAdapter(kind), bsmodel.step_time(tape, a100, np.array(batches), 2)
    text = adapter.dump_json(times)
    document, back = json.loads(text), adapter.validate_json(text)

    jsonschema.validate(document, adapter.json_schema(mode="serialization"))
    assert document["batch"] == batches and document["seconds"] == times.seconds.tolist()
    assert document["accumulation"] == np.full_like(times.batch, 2).tolist()
    for field in dataclasses.fields(times):
        if field.name != "phases":
            np.testing.assert_array_equal(getattr(back, field.name), getattr(times, field.name), strict=isinstance(getattr(times, field.name), np.ndarray))
    assert all((back.phases[name] == seconds).all() for name, seconds in times.phases.items())


def test_an_array_is_not_read_from_a_number(answers):
    with pytest.raises(ValidationError, match="several numbers"):
        TypeAdapter(StepTime[Counts, Array]).validate_json(TypeAdapter(StepTime[int, float]).dump_json(answers[StepTime]))


def test_what_is_not_finite_is_null(tape, a100):
    infinite = dataclasses.replace(bsmodel.step_time(tape, a100, 8), mfu=math.inf, seconds=math.nan)
    infinities = dataclasses.replace(bsmodel.step_time(tape, a100, [8, 9]), mfu=np.array([math.inf, math.nan]))

    assert json.loads(TypeAdapter(StepTime).dump_json(infinite), parse_constant=refuse)["mfu"] is None
    assert json.loads(TypeAdapter(StepTime).dump_json(infinities), parse_constant=refuse)["mfu"] == [None, None]


@pytest.mark.parametrize("batch", [8, np.int64(8)], ids=["int", "int64"])
def test_one_batch_has_pythons_own_numbers(tape, a100, batch):
    step, form = bsmodel.step_time(tape, a100, batch, batch), bsmodel.footprint(tape)
    values = [getattr(step, field.name) for field in dataclasses.fields(step) if field.name != "phases"]

    assert {type(value) for value in [*values, *step.phases.values()]} == {int, float}
    assert type(form(batch)) is type(form.largest(batch)) is type(form.envelope(batch)) is int


@pytest.mark.parametrize("batches", [np.array(8), range(1, 9), [1, 2], np.array([[1], [2]], np.int32)], ids=["no axis", "range", "list", "grid"])
def test_several_batches_have_arrays_of_their_shape(tape, a100, batches):
    step, form = bsmodel.step_time(tape, a100, batches), bsmodel.footprint(tape)
    values = [getattr(step, field.name) for field in dataclasses.fields(step) if field.name not in ("phases", "tokens_per_sample")]

    assert all(isinstance(value, np.ndarray) and value.shape == np.shape(batches) for value in [*values, *step.phases.values(), form(batches)])
    assert step.batch.dtype == step.accumulation.dtype == form(batches).dtype == form.largest(batches).dtype == np.int64
    assert step.seconds.dtype == step.launches.dtype == np.float64


def test_several_accumulations_of_one_batch_are_broadcast(tape, a100):
    steps = bsmodel.step_time(tape, a100, 8, [1, 2, 4])

    assert steps.batch.tolist() == [8, 8, 8] and steps.phases["step"].shape == (3,)
    assert steps.seconds.tolist() == [bsmodel.step_time(tape, a100, 8, count).seconds for count in (1, 2, 4)]


def test_importing_the_library_builds_no_adapter_and_imports_no_torch():
    program = """
import sys, pydantic
def refuse(self, *args, **kwargs): raise AssertionError("an adapter is built at import")
pydantic.TypeAdapter.__init__ = refuse
import bsmodel
print(sorted({"torch", "fvcore", "pandas", "pyarrow", "dask"} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert result.returncode == 0, result.stderr
    assert result.stdout == "[]\n"
