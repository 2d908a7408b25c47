# SPDX-License-Identifier: Apache-2.0
"""A step over time: bytes by moment that are those of the breakdown at the binding one, kernels that every allocation comes before, and what of it is drawn."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bsmodel
from bsmodel import Parallel, Training
from bsmodel.memory import Moment, StepMemory, on_devices, over_a_step
from bsmodel.tape import AFTER, REPEATED
from tests import models
from tests.test_kernel_times import recurrent

RECIPES = {
    "one": {"precision": "bf16-mixed"},
    "checkpointing": {"checkpointing": True, "gradient_clipping": 1.0},
    "last micro-step alone sums": {"parallel": Parallel(kind="ddp", devices=8, sync_each_micro_step=False)},
    "shards": {"parallel": Parallel(kind="fsdp2", devices=8)},
    "shards, the last sums": {"parallel": Parallel(kind="fsdp2", devices=8, sync_each_micro_step=False)},
}
MICRO_STEP = ("forward", "backward", "recompute")
pytestmark = pytest.mark.filterwarnings("ignore:PyTorch was compiled without cuDNN")


@pytest.fixture(scope="module")
def recordings(a100):
    return {name: bsmodel.trace(models.attention(), Training(**recipe), a100) for name, recipe in RECIPES.items()}


def held(found, place):
    return {name: size for name, size in zip(found.categories, found.bytes[:, place].tolist(), strict=True) if size}


def loading(tape, size_bytes):
    """The same step of a model whose loading takes so much for a moment."""
    more, number = {"operators": "aten.cat.default", "modules": "", "phases": "forward", "categories": "temporary"}, len(tape.categories)
    sizes = {name: np.append(getattr(tape, name), size) for name, size in (("fixed_bytes", size_bytes), ("per_sample_bytes", 0), ("per_pair_bytes", 0))}
    words = {name: (*getattr(tape, name), word) for name, word in more.items()}
    return replace(tape, **sizes, **words, blocks={**tape.blocks, "init": (*tape.blocks["init"], number, ~number)})


# -- bytes ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("accumulation", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 700])
def test_the_binding_moment_holds_what_the_breakdown_says(recordings, a100, recipe, accumulation, batch):
    tape = recordings[recipe]
    found, form = over_a_step(tape, batch, accumulation, a100), bsmodel.footprint(tape, accumulation, a100)

    assert held(found, found.binding) == bsmodel.breakdown(tape, batch, accumulation, a100).by_category
    assert found.total_bytes.max() == found.total_bytes[found.binding] == form(batch)
    assert str(found.moments[found.binding]) == str(form.binding(batch))
    assert found.micro_steps == min(accumulation, 3 if "alone" in recipe or "last" in recipe else 2)


@given(batch=st.integers(1, 50_000), devices=st.sampled_from([1, 8]))
def test_at_any_batch(recordings, a100, batch, devices):
    tape = on_devices(recordings["one"], devices)
    found = over_a_step(tape, batch, gpu=a100)

    assert held(found, found.binding) == bsmodel.breakdown(tape, batch, gpu=a100).by_category
    assert found.total_bytes.max() == bsmodel.footprint(tape, gpu=a100)(batch) and (found.bytes >= 0).all()


def test_every_moment_is_what_a_count_by_hand_has(recordings, a100):
    """A steady step replayed with a bag of living allocations."""
    tape = recordings["one"]
    found, sizes, alive, expected = over_a_step(tape, 8, gpu=a100), tape.sizes(8, a100), {}, []
    run = [event for _, block in tape.program(3) for event in block]
    for event in run:
        number = event if event >= 0 else ~event
        alive[number] = alive.get(number, 0) + (1 if event >= 0 else -1)
        expected.append(sum(count * int(sizes[number]) for number, count in alive.items()))

    assert found.step == 3 and found.total_bytes.tolist() == expected[-len(found.moments) :]


def test_a_step_that_takes_the_most_while_the_model_is_loaded_is_the_first(recordings, a100):
    tape = loading(recordings["one"], 1 << 40)
    found = over_a_step(tape, 8, gpu=a100)

    assert found.step == 1 and str(found.moments[found.binding]) == "loading the model"
    assert held(found, found.binding) == bsmodel.breakdown(tape, 8, gpu=a100).by_category
    assert [moment.block for moment in found.moments][-1] == "first_step"


def test_a_release_is_where_the_nearest_allocation_of_its_block_is(recordings, a100):
    tape = recordings["one"]
    found = over_a_step(tape, 8, gpu=a100)
    events = [event for name in ("micro", "step") for event in tape.blocks[name]]

    assert len(events) == len(found.moments)
    assert [moment.block for moment in found.moments] == [name for name in ("micro", "step") for _ in tape.blocks[name]]
    for place, event in enumerate(events):
        number = event if event >= 0 else next((e for e in events[place::-1] if e >= 0), None)
        if number is not None:
            assert found.moments[place].operator == tape.operators[number]


# -- kernels -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_an_operator_allocates_comes_before_its_kernel(recordings, recipe):
    tape = recordings[recipe]
    operations = tape.operations

    assert [*tape.reached] == [name for name in REPEATED if name in tape.blocks]
    for block, places in tape.reached.items():
        rows = np.flatnonzero(operations.where("step") if block in AFTER else operations.where(*MICRO_STEP))
        names = [operations.operators[row] for row in rows]
        there = [(event, place) for event, place in zip(tape.blocks[block], places, strict=True) if event >= 0 and tape.operators[event] in names]

        assert len(there) > 20 and all(tape.operators[event] == names[place] for event, place in there)
        assert sorted(places) == [*places] and places[-1] <= len(names)


def test_of_a_recurrent_layer_all_comes_before_what_cudnn_runs(a100):
    """Its steps were recorded in kernels of PyTorch's own, which cuDNN's few stand for."""
    tape = bsmodel.trace(recurrent("GRU", 64, 5, layers=1), Training(precision="fp32", optimizer="sgd"), a100)
    operations = tape.operations
    names = [operations.operators[row] for row in np.flatnonzero(operations.where(*MICRO_STEP))]
    first = names.index("aten._cudnn_rnn.default")
    inside = [place for event, place in zip(tape.blocks["micro"], tape.reached["micro"], strict=True) if event >= 0 and "sigmoid" in tape.operators[event]]

    assert len(inside) == 10 and {*inside} == {first} and tape.reached["micro"][-1] == len(names)


def test_what_a_kernel_holds_inside_is_there_while_it_runs(recordings):
    tape = recordings["one"]
    begins, lasting = {}, {}
    for event, place in zip(tape.blocks["micro"], tape.reached["micro"], strict=True):
        number = event if event >= 0 else ~event
        if event >= 0:
            begins[number] = place
        elif number in begins and tape.categories[number] == "workspace":
            lasting.setdefault(tape.operators[number], set()).add(place - begins[number])

    assert lasting["aten.embedding_dense_backward.default"] == {1}


def test_a_saved_tape_keeps_it(recordings, tmp_path):
    tape = recordings["shards, the last sums"]
    tape.save(tmp_path / "tape")

    assert bsmodel.Tape.load(tmp_path / "tape").reached == tape.reached


# -- what is drawn -------------------------------------------------------------------------------------------------------------------------


@st.composite
def courses(draw):
    """A step of some moments, and when they are."""
    sizes = draw(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=2000))
    gaps = draw(st.lists(st.floats(0, 1e-2), min_size=len(sizes) + 1, max_size=len(sizes) + 1))
    found = StepMemory(1, 3, 1, ("saved",), np.array([sizes]), (Moment("micro", "forward", "", "op"),) * len(sizes), int(np.argmax(sizes)))
    return found, np.cumsum([*gaps, 1e-3])


@given(courses())
def test_no_extreme_of_a_stripe_is_left_out_nor_the_binding_moment(course):
    from bsmodel.pages.stacking import thinned

    pytest.importorskip("altair")
    found, places = course
    kept, total = thinned(places, found), found.total_bytes
    stripe = np.minimum(places[:-2] / places[-1] * 256, 255).astype(int)

    assert found.binding in kept and 0 in kept and len(total) - 1 in kept and len(kept) <= 4 * 256 + 3 and (np.diff(kept) > 0).all()
    for number in np.unique(stripe):
        inside = np.flatnonzero(stripe == number)
        own = np.intersect1d(kept, inside)
        assert {inside[0], inside[-1]} <= {*own} and (total[own].min(), total[own].max()) == (total[inside].min(), total[inside].max())
