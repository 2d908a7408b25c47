# SPDX-License-Identifier: Apache-2.0
"""Every named workload: its lines equal a direct recording, and its parameters are the published ones."""

import pytest

import bsmodel
from bsmodel.workloads import NAMED
from tests.strategies import same_sizes

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


@pytest.mark.parametrize("name", NAMED)
def test_the_lines_equal_a_direct_recording_to_the_byte(name, named_tape, a100):
    from bsmodel.recording.tracing import record

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
