# SPDX-License-Identifier: Apache-2.0
"""Where not one sample fits, what is said to make it fit has been tried, and does."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import bsmodel
from bsmodel import Parallel, Training
from bsmodel.studies import Goal, Progress, Recorded, Row, study
from bsmodel.studies.executors import Here
from bsmodel.studies.grid import Cell, Recipe
from bsmodel.studies.remedies import remedied
from tests.models import of_size, workload

WIDTH, LONG = 256, 4096
SGD = {"optimizer": "sgd"}


def card(mebibytes, name="a100-40gb"):
    gpu = bsmodel.Gpu.named(name)
    return of_size(gpu, 500 + mebibytes)


def deep():
    return nn.Sequential(
        nn.Identity(), nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(12)))
    )


def long(size):
    return torch.zeros(size, LONG, WIDTH)


def wide():
    return nn.Sequential(nn.Identity(), nn.Sequential(*(nn.Sequential(nn.Linear(2048, 2048), nn.ReLU()) for _ in range(4))))


def short(size):
    return torch.zeros(size, 2048)


def square(model, batch):
    return model(batch).square().mean()


ACTIVATIONS = workload(deep, long, square, name="activations")  # 4 MiB a layer and sample, 6 MiB of weights
WEIGHTS = workload(wide, short, square, name="weights")  # 64 MiB of weights and as much of gradients, 128 of moments, next to no activations


def row_of(workload, gpu, recipe=None, devices=1, **options):
    return study([workload], [recipe or {}], [gpu], [devices], executor=Here(), **options).rows[0]


def suggested(row):
    """The flags of a verdict as fields of a recipe, and the batch that they are said to reach."""
    found = re.search(r"; try ((?:--\S+(?: [^-\s]\S*)? ?)+): up to batch ([\d,]+)$", row.verdict)
    assert found, row.verdict
    pairs = re.findall(r"--(\S+)(?: ([^-\s]\S*))?", found[1])
    return {name.replace("-", "_"): int(value) if value.isdigit() else value or True for name, value in pairs}, int(found[2].replace(",", ""))


def test_checkpointing_is_said_where_it_does():
    changes, batch = suggested(row_of(ACTIVATIONS, card(160)))

    assert changes == {"checkpointing": True}
    assert row_of(ACTIVATIONS, card(160), changes).largest_batch == batch >= 1


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("mebibytes", [265, 170, 120])
def test_what_is_said_fits_and_nothing_milder_does(mebibytes, devices):
    gpu = card(mebibytes + (64 + 2 * 12 * 64) * (devices > 1))  # with room for buckets, and for NCCL's 64 channels to two neighbours
    changes, batch = suggested(row_of(WEIGHTS, gpu, devices=devices))
    milder = [
        *({"checkpointing": True}, {"checkpointing": True, "optimizer": "adamw-8bit"}),
        *({"checkpointing": True, "precision": "bf16"}, {"checkpointing": True, "precision": "bf16", "optimizer": "adamw-8bit"}),
    ]

    assert row_of(WEIGHTS, gpu, changes, devices).largest_batch == batch
    for change in milder[: milder.index(changes) if changes in milder else None]:
        assert row_of(WEIGHTS, gpu, change, devices).status == "does not fit"


def test_what_was_asked_for_is_kept_and_what_is_there_is_not_repeated():
    assert suggested(row_of(WEIGHTS, card(210), {"checkpointing": True}))[0] == {"optimizer": "adamw-8bit"}
    assert "optimizer" not in suggested(row_of(WEIGHTS, card(170), {"optimizer": "adamw"}))[0]
    assert "precision" not in row_of(WEIGHTS, card(110), {"precision": "fp32"}).verdict.partition(";")[2].replace("lora", "")
    assert "optimizer" not in suggested(row_of(WEIGHTS, card(170), Training(optimizer="adamw-fused")))[0]


def test_a_card_without_bf16_is_offered_none():
    assert "bf16" not in row_of(WEIGHTS, card(150, "t4-16gb")).verdict
    assert "--optimizer adamw-8bit" in row_of(WEIGHTS, card(210, "t4-16gb")).verdict


def test_where_nothing_helps_what_was_tried_is_said():
    said = row_of(WEIGHTS, card(30)).verdict

    assert said.endswith("fits either") and "; none of --checkpointing, --checkpointing --optimizer adamw-8bit, " in said and "--lora-rank 16" in said
    assert row_of(WEIGHTS, card(30), {"optimizer": "sgd", "precision": "fp32", "lora_rank": 2}).verdict.endswith("; --checkpointing does not fit either")


def test_nothing_is_said_where_nothing_was_tried(a100):
    tape = bsmodel.trace(WEIGHTS, Training(), a100)

    assert ";" not in row_of(tape, card(210)).verdict and "try" not in bsmodel.fit(tape, card(210)).verdict
    assert row_of(WEIGHTS, a100).fits and ";" not in row_of(WEIGHTS, a100).verdict
    row = study([WEIGHTS], [SGD], [card(200)], goals=[Goal(target_batch=10**6)], executor=Here()).rows[0]
    assert row.largest_batch > 0 and "try" not in row.verdict


def test_a_step_of_its_own_is_offered_another_optimizer_and_no_more():
    def step(model, optimizer, batch):
        model(batch.cuda()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    own = replace(WEIGHTS, loss=None, step=step, name="own step")

    assert suggested(row_of(own, card(210)))[0] == {"optimizer": "adamw-8bit"}
    assert row_of(own, card(100)).verdict.endswith("; --optimizer adamw-8bit does not fit either")


def test_recordings_are_few_shared_and_shown():
    seen: list[Progress] = []
    cards = [card(140), card(150).model_copy(update={"id": "another"})]
    rows = study([WEIGHTS], gpus=cards, devices=[1], goals=[Goal(), Goal(target_batch=4096)], executor=Here(), watch=seen.append).rows

    assert len(rows) == 4 and all("; try" in row.verdict for row in rows)
    assert [row.gpu for row in rows] == ["a100-40gb", "a100-40gb", "another", "another"]
    assert 2 <= sum(progress.recorded is not None for progress in seen) <= 6 and not any(progress.reason for progress in seen)
    assert (seen[-1].done, seen[-1].total) == (4, 4)


def test_a_model_without_a_switch_for_checkpointing_is_offered_the_others():
    plain = replace(WEIGHTS, model=lambda: nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 4096)), name="plain")
    changes, batch = suggested(row_of(plain, card(170)))

    assert changes == {"optimizer": "adamw-8bit"}
    assert row_of(plain, card(170), changes).largest_batch == batch


def test_a_remedy_that_cannot_be_recorded_is_passed_over():
    class Unusual(nn.Linear):
        def forward(self, batch):
            if self.weight.dtype is torch.bfloat16:
                raise RuntimeError("never in half")
            return super().forward(batch)

    unusual = replace(WEIGHTS, model=lambda: nn.Sequential(*(Unusual(2048, 2048) for _ in range(4))), name="unusual")

    assert "bf16" not in row_of(unusual, card(150)).verdict


@pytest.mark.parametrize(("kind", "tried"), [("ddp", False), ("zero1", True), ("fsdp2", True)])
def test_states_that_devices_divide_are_held_against_a_device_by_their_part(kind, tried):
    """Of 70 B parameters AdamW's states take 1.12 TB: 17.5 GB on each of 64 cards, where each has a part."""
    recipe, gpu = {"parallel": Parallel(kind=kind, devices=64)}, bsmodel.Gpu.named("h100-80gb")
    as_recorded = {"parallel": {"kind": kind, "devices": 64}, "checkpointing": False}
    known = Recorded("llama", 70 * 10**9, 70 * 10**9, "fp32", "adamw", as_recorded, {"torch": "2.11"}, (), ())
    cell = Cell(WEIGHTS, Recipe.of(recipe), gpu, 64, Goal())
    row = Row("llama", recipe, gpu.id, 64, None, "does not fit", "does not fit", known, largest_batch=0)
    asked = []

    def work(cells):
        asked.extend(dict(each.recipe.changes) for each in cells)
        return [(each, replace(row, status="plan", largest_batch=1)) for each in cells]

    ((_, found),) = remedied([(cell, row)], work)
    assert ({**recipe, "checkpointing": True} in asked) == tried == ("; try --checkpointing: up to batch 1" in found.verdict)
