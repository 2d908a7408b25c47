# SPDX-License-Identifier: Apache-2.0
"""Every named workload: its lines equal a direct recording, and its parameters are the published ones."""

import itertools
import json

import pytest

import bsmodel
from bsmodel.command import main
from bsmodel.recording.placement import weights_nowhere
from bsmodel.workloads import MADE_HERE, NAMED, PUBLISHED, Source
from tests.strategies import same_sizes
from tests.test_refusals import line_of

pytest.importorskip("transformers")
pytest.importorskip("diffusers")

PARAMETERS_MILLION = {
    "resnet50": 25.56,  # He 2015, torchvision
    "vit-b-16": 86.57,  # Dosovitskiy 2020, with a head of 1000 classes
    "vit-l-16": 304.33,
    "gpt2": 124.44,  # Radford 2019, as released
    "bert-base": 109.48,  # Devlin 2018, with pooler and two classes
    "llama-3.2-1b": 1235.81,  # model card
    "llama-3-8b": 8030.26,  # model card
    "sd15-unet": 859.52,  # Rombach 2022, as released
}


@pytest.mark.parametrize("name", MADE_HERE)
def test_the_lines_equal_a_direct_recording_to_the_byte(name, named_tape, a100):
    from bsmodel.recording.recordings import record

    workload = bsmodel.Workload.named(name)
    traced = named_tape(name)

    assert traced.parameter_count / 1e6 == pytest.approx(PARAMETERS_MILLION[name], abs=0.01)
    for batch in (7, 12):
        direct = record(workload, workload.training, a100, batch)
        assert same_sizes(traced, direct, batch)
        assert bsmodel.footprint(traced)(batch) == bsmodel.footprint(direct)(batch)


def test_fewer_than_six_lines_bind(a100):
    workload = bsmodel.Workload.named("bert-base", seq_len=64)
    form = bsmodel.footprint(bsmodel.trace(workload, workload.training, a100))

    assert 1 <= len(form.moments) <= 5
    assert "optimizer step" in {str(moment) for moment in form.moments}


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row.name)
def test_a_model_has_the_parameters_that_are_published(row):
    """To the last digit that is, which some round and some cut off."""
    digits, unit = row.parameters.split()
    with weights_nowhere():
        count = sum(parameter.numel() for parameter in bsmodel.Workload.named(row.name).model().parameters()) / {"M": 1e6, "B": 1e9}[unit]
    assert abs(count - float(digits)) < 10 ** -len(digits.partition(".")[2])
    assert row.source and row.weights in ("float32", "float16", "bfloat16")


SLOW = {"detr-resnet-50", "mask2former-swin-tiny"}  # half a minute and more for each family of kernels: benchmarks/coverage.py records such models


ELSEWHERE = sorted(set(NAMED) - set(MADE_HERE) - SLOW)
FAMILIES = (("rtx-3070-8gb", "rtx-4090-24gb", "a100-40gb"), ("h100-80gb",))  # of kernels, of which every other name is planned with one


@pytest.mark.parametrize(("name", "gpus"), list(zip(ELSEWHERE, itertools.cycle(FAMILIES))), ids=ELSEWHERE)
def test_every_name_plans_on_default_cards_or_says_why_not(name, gpus):
    cards = [bsmodel.Gpu.named(gpu) for gpu in gpus]
    tape = bsmodel.trace(bsmodel.Workload.named(name), gpu=cards[0])
    for gpu in cards:
        fit = bsmodel.fit(tape, gpu)
        assert fit.batch > 0 or fit.verdict.startswith(f"does not fit on {gpu.id}: one sample needs")
        assert fit.batch == 0 or bsmodel.plan(fit, target_batch=fit.batch).split.micro_batch > 0


def test_what_has_a_name_can_be_listed(capsys):
    assert main(["models", "--json"]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert [row["name"] for row in models] == list(NAMED) and len(models) >= 48
    assert main(["models"]) == 0
    assert "moonlight-16b-a3b" in capsys.readouterr().out


def test_a_name_takes_the_options_of_its_kind():
    assert bsmodel.Workload.named("qwen3-0.6b", seq_len=64).tokens_per_sample == 64
    assert bsmodel.Workload.named("qwen3-0.6b").weights == "bfloat16"
    assert line_of(Source.of("sdxl-unet", seq_len=64).check) == "sdxl-unet has no option 'seq-len'; it takes: image-size"
    assert "is beyond the model's 2048 positions" in line_of(bsmodel.Workload.named, "tinyllama-1.1b", seq_len=4096)
