# SPDX-License-Identifier: Apache-2.0
"""Mixtures of experts: peaks as recorded from the PyTorch CUDA allocator (2.11) on a simulated A100, four layers of eight experts, 4 x 512 tokens."""

import pytest
import torch

import bsmodel
from bsmodel import footprint
from bsmodel.workloads import own_loss, token_batch, transformers_config, transformers_model
from tests.test_refusals import line_of

SIZES = {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 8000}
MODELS = {
    "mixtral": {**SIZES, "intermediate_size": 1024, "num_local_experts": 8},
    "qwen3_moe": {**SIZES, "moe_intermediate_size": 256, "num_experts": 16, "head_dim": 64},
}


def experts(name, **fields):
    config = transformers_config(name, None, **{**MODELS[name], **fields})
    return bsmodel.Workload(transformers_model(config, "AutoModelForCausalLM"), token_batch(512), own_loss, name=name)


@pytest.mark.parametrize(
    ("name", "precision", "allocated", "reserved"),
    [
        ("mixtral", "fp32", 1608124416, 1692401664),
        ("mixtral", "bf16-mixed", 1444714496, 1524629504),
        ("mixtral", "bf16", 854600704, 931135488),
        ("qwen3_moe", "fp32", 1560197120, 1702887424),
        ("qwen3_moe", "bf16-mixed", 1384040448, 1497366528),
        ("qwen3_moe", "bf16", 844520448, 920649728),
    ],
)
def test_experts_take_what_they_take_on_cuda(a100, name, precision, allocated, reserved):
    peak = bsmodel.predict(bsmodel.trace(experts(name), bsmodel.Training(precision=precision), a100), a100, 4)

    assert (peak.allocated_bytes, peak.reserved_bytes) == (allocated, reserved)


def test_every_token_is_computed_by_its_experts_only(a100):
    """FLOPs of the experts: tokens x experts a token x three projections, twice a multiply-add."""
    tape = bsmodel.trace(experts("mixtral"), bsmodel.Training(precision="bf16"), a100)
    forward = [row for row in bsmodel.by_operator(tape, 1) if row.operator == "aten._grouped_mm.default"]

    assert [row.flops for row in forward] == [4 * 512 * 2 * 3 * 512 * 1024 * 2]


def test_rows_that_are_not_aligned_are_refused_as_on_cuda(a100):
    message = line_of(bsmodel.trace, experts("qwen3_moe", moe_intermediate_size=250), bsmodel.Training(precision="fp32"), a100)

    assert "multiples of 16 bytes, not of 1000" in message


def test_experts_that_gather_their_tokens_are_loaded_evenly(a100):
    """As many tokens each: in all what the products of the same rows in groups take, and said so."""

    def routed(model, batch):
        z = model(batch[0])
        weights, chosen = z.softmax(-1).topk(2, dim=-1)
        total = torch.zeros_like(z)
        for expert in torch.nn.functional.one_hot(chosen, 4).sum((0, 1)).nonzero():
            rows, place = torch.where(chosen == expert.squeeze())
            total = total.index_add(0, rows, z[rows].exp() * weights[rows, place, None])
        return total.mean()

    asked = bsmodel.Workload(lambda: torch.nn.Linear(16, 4), lambda size: [torch.zeros(8 * size, 16)], routed, name="routed")
    tape = bsmodel.trace(asked, bsmodel.Training(), a100)
    sizes = {int(tape.per_sample_bytes[i]) for i, name in enumerate(tape.operators) if name == "aten.exp.default"}

    assert sizes == {8 * 2 // 4 * 4 * 4}
    assert any("lie evenly" in remark for remark in tape.remarks)


def test_experts_that_do_not_divide_their_tokens_have_a_closed_form(a100):
    """Each sample's 50 tokens over 3 experts: 17, 17 and 16 of them, in every sample."""

    def routed(model, batch):
        z = model(batch[0])
        rows = [torch.where(z.argmax(-1) == expert)[0] for expert in range(3)]
        return torch.stack([z[row].exp().mean() for row in rows]).mean()

    tape = bsmodel.trace(bsmodel.Workload(lambda: torch.nn.Linear(16, 3), lambda size: [torch.zeros(50 * size, 16)], routed, name="routed"), gpu=a100)
    assert {int(tape.per_sample_bytes[i]) for i, name in enumerate(tape.operators) if name == "aten.exp.default"} == {17 * 3 * 4, 16 * 3 * 4}


def test_experts_that_all_tokens_choose_are_the_upper_end(a100):
    """Two experts with all tokens in place of four with half of them: what an expert's products take for a moment is twice as much."""
    wide = 1024

    def routed(model, batch):
        z = model(batch[0])
        chosen = z.topk(2, dim=-1).indices
        total = z.new_zeros(z.size(0))
        for expert in range(4):
            rows, _ = torch.where(chosen == expert)
            total = total.index_add(0, rows, (z[rows] @ z.new_ones(4, wide)).exp().mean(-1))
        return total.mean()

    asked = bsmodel.Workload(lambda: torch.nn.Linear(16, 4), lambda size: [torch.zeros(8 * size, 16)], routed, name="routed")
    tape = bsmodel.trace(asked, bsmodel.Training(), a100)
    products = (8 - 4) * wide * 4

    assert tape.worst is not None
    more = footprint(tape.worst)(1000) - footprint(tape)(1000)
    assert 1000 * products <= more <= 3 * 1000 * products
    peak, fit = bsmodel.predict(tape, a100, 1000), bsmodel.fit(tape, a100)
    assert peak.reserved_upper_bytes >= peak.reserved_bytes + more
    assert fit.batch < fit.likely_batch
