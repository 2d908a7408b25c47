# SPDX-License-Identifier: Apache-2.0
"""FLOPs and activations against two other counters: torch's, and fvcore's own tracer where that works."""

import warnings

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import bsmodel
from bsmodel.recording import counts
from bsmodel.tape import counted
from bsmodel.workloads import MADE_HERE
from tests.models import attention, convolutional, images, workload


def forward_flops(tape, batch):
    return tape.operations.column("counted_flops", batch).sum()


@pytest.mark.parametrize("name", MADE_HERE)
def test_flops_of_every_named_workload_are_those_of_torch(name, named_tape):
    pytest.importorskip("diffusers" if name == "sd15-unet" else "transformers")
    named = bsmodel.Workload.named(name)
    tape = named_tape(name)
    with torch.device("meta"):
        model = named.model()
        batch = {key: tensor.to("meta") for key, tensor in named.batch(2).items() if key != "attention_mask"}
        with FlopCounterMode(display=False) as counter:
            named.loss(model, batch)

    assert forward_flops(tape, 2) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_fvcore_counts_the_same_where_it_can_trace(a100):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis

        model = convolutional()
        flops = FlopCountAnalysis(model, images(4)[0]).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        activations = ActivationCountAnalysis(model, images(4)[0]).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        by_operator = flops.by_operator()
        multiply_adds = by_operator["conv"] + by_operator["linear"]
        wanted = 2 * multiply_adds + flops.total() - multiply_adds
        wanted_activations = activations.total()
    table = bsmodel.by_module(bsmodel.trace(workload(), bsmodel.Training(optimizer="sgd"), a100), 4)

    assert table[0].flops == wanted
    assert table[0].activations == wanted_activations


def test_modules_add_up_and_parameters_are_the_models_own(a100):
    table = {row.module: row for row in bsmodel.by_module(bsmodel.trace(attention(), bsmodel.Training(), a100), 8)}

    assert table[""].parameters == sum(p.numel() for p in attention().model().parameters())
    for column in ("parameters", "flops", "activations", "saved_bytes"):
        layers = [getattr(table[f"blocks.layers.{i}"], column) for i in range(2)]
        assert sum(layers) == getattr(table["blocks.layers"], column) <= getattr(table[""], column)
    assert table["blocks.layers.1"].flops == table["blocks.layers.0"].flops > 0


def test_operators_add_up_to_the_model(a100):
    tape = bsmodel.trace(attention(), bsmodel.Training(), a100)
    rows = {row.operator: row for row in bsmodel.by_operator(tape, 8)}

    assert sum(row.flops or 0 for row in rows.values()) == bsmodel.by_module(tape, 8)[0].flops
    assert rows["aten.native_layer_norm.default"].calls == 4
    assert rows["aten.add.Tensor"].flops is None and rows["aten.add.Tensor"].moved_bytes > 0


def test_operators_without_a_formula_are_listed(a100):
    tape = bsmodel.trace(workload(), bsmodel.Training(optimizer="sgd"), a100)

    assert {"aten.relu_.default", "aten.native_dropout.default"} <= set(tape.uncounted_operators)
    assert "aten.convolution.default" not in tape.uncounted_operators


def test_a_formula_that_fails_leaves_its_operator_uncounted(monkeypatch, a100):
    """fvcore's formula of a convolution asserts that there are twelve or thirteen arguments."""
    monkeypatch.setitem(counts.FORMULAS, torch.ops.aten.max_pool2d_with_indices.default, (counts._Formula("conv_flop_jit"),))
    pooled = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.MaxPool2d(2))
    tape = bsmodel.trace(workload(lambda: pooled, loss=lambda model, batch: model(batch[0]).mean()), bsmodel.Training(optimizer="sgd"), a100)

    assert "aten.max_pool2d_with_indices.default" in tape.uncounted_operators and "aten.convolution.default" not in tape.uncounted_operators


def test_the_counted_form_has_all_the_states_and_less_than_the_peak_per_sample(a100):
    tape = bsmodel.trace(attention(), bsmodel.Training(optimizer="adamw"), a100)
    line = counted(tape)

    assert line.fixed >= 4 * 4 * tape.parameter_count  # weights, gradients and two moments in float32
    assert 0 < line.per_sample <= bsmodel.footprint(tape).envelope.polynomials[-1].per_sample
