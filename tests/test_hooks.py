# SPDX-License-Identifier: Apache-2.0
"""What hooks, checkpoints and functions of one's own do with saved tensors: peaks recorded from the PyTorch CUDA allocator on a simulated A100."""

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import bsmodel
from bsmodel import Training, Workload

aten = torch.ops.aten


class Square(torch.autograd.Function):
    """Keeps its input and a float32 copy of its output."""

    @staticmethod
    def forward(ctx, x):
        y = x * x
        ctx.save_for_backward(x, y.float())
        return y

    @staticmethod
    def backward(ctx, gradient):
        x, y = ctx.saved_tensors
        return gradient * 2 * x + y.to(gradient.dtype)


@torch.library.custom_op("bsmodel_tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


twice.register_fake(torch.empty_like)
twice.register_autograd(lambda ctx, gradient: gradient * 2)


def keep_biased(context, operator, *args, **kwargs):
    return CheckpointPolicy.MUST_SAVE if operator is aten.addmm.default else CheckpointPolicy.PREFER_RECOMPUTE


CONTEXTS = {
    "selective list": functools.partial(create_selective_checkpoint_contexts, [aten.mm.default, aten.addmm.default]),
    "selective policy": functools.partial(create_selective_checkpoint_contexts, keep_biased),
}


class Residuals(nn.Module):
    """Four wide layers, and something that happens to what they save."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(512, 2048), nn.GELU(), nn.Linear(2048, 512)) for _ in range(4))

    def forward(self, x):
        if self.kind in CONTEXTS:
            for layer in self.layers:
                x = x + checkpoint(layer, x, use_reentrant=False, context_fn=CONTEXTS[self.kind])
        elif self.kind.startswith("offloaded"):
            with torch.autograd.graph.save_on_cpu(pin_memory=self.kind.endswith("pinned")):
                return self.added(x)
        elif self.kind == "packed by a hook":
            with torch.autograd.graph.saved_tensors_hooks(lambda t: (t.device, t.to("cpu")), lambda packed: packed[1].to(packed[0])):
                return self.added(x)
        else:
            function = Square.apply if self.kind == "function" else twice
            for layer in self.layers:
                x = function(layer(x))
            return x.mean()
        return x.pow(2).mean()

    def added(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return x.pow(2).mean()


def summed(states, weight, labels):
    return F.cross_entropy((states @ weight.t()).float(), labels, reduction="sum")


class Chunked(nn.Module):
    """A loss in pieces, each with its logits computed again in backward."""

    def __init__(self, pieces):
        super().__init__()
        self.pieces, self.embedding, self.body, self.head = pieces, nn.Embedding(8000, 256), nn.Linear(256, 256), nn.Linear(256, 8000, bias=False)

    def forward(self, x):
        states, labels = self.body(self.embedding(x)).flatten(0, 1), x.flatten()
        parts = zip(*((t.chunk(8) if self.pieces is None else t.split(self.pieces)) for t in (states, labels)), strict=True)
        return sum(checkpoint(summed, state, self.head.weight, label, use_reentrant=False) for state, label in parts) / labels.numel()


def workload(kind):
    if kind.startswith("chunked"):
        tokens = lambda size: [torch.zeros(size, 256, dtype=torch.long)]  # noqa: E731
        return Workload(lambda: Chunked(512 if kind.endswith("size") else None), tokens, lambda model, batch: model(*batch), name=kind)
    return Workload(lambda: Residuals(kind), lambda size: [torch.zeros(size, 256, 512)], lambda model, batch: model(*batch), name=kind)


RECORDED = {
    ("offloaded, pinned", "fp32"): (206996992, 374758912),
    ("offloaded, pinned", "bf16-mixed"): (196507136, 330714624),
    ("offloaded", "fp32"): (206996992, 374758912),
    ("packed by a hook", "fp32"): (206996992, 374758912),
    ("selective list", "fp32"): (269880832, 676728320),
    ("selective policy", "fp32"): (269880832, 676728320),
    ("selective policy", "bf16-mixed"): (223739392, 498466304),
    ("function", "bf16-mixed"): (263585280, 620101120),
    ("operator", "fp32"): (303427072, 844492288),
    ("chunked by count", "fp32"): (107237376, 201854976),
    ("chunked by count", "bf16-mixed"): (108220416, 194220032),
}


@pytest.mark.parametrize(("kind", "precision"), RECORDED)
def test_allocated_is_the_recorded(kind, precision, a100):
    tape = bsmodel.trace(workload(kind), Training(precision=precision, optimizer="adamw"), a100)

    for batch, allocated in zip((8, 32), RECORDED[kind, precision], strict=True):
        assert bsmodel.predict(tape, a100, batch).allocated_bytes == pytest.approx(allocated, rel=1e-4)


def test_pieces_of_one_size_are_no_recording_for_every_batch(a100):
    with pytest.raises(bsmodel.UntraceableError, match="takes another path at batch 3 than at batch 2"):
        bsmodel.trace(workload("chunked by size"), Training(), a100)


def test_a_checkpoint_of_diffusers_sees_one_device(a100):
    """`gradient_checkpointing` of its autoencoder compares devices of tensors that hooks see in forward and in backward."""
    diffusers = pytest.importorskip("diffusers")
    sizes = {"block_out_channels": (8, 16), "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}

    def model():
        made = diffusers.AutoencoderKL(**sizes, norm_num_groups=4)
        made.enable_gradient_checkpointing()
        return made

    whole = Workload(model, lambda size: torch.zeros(size, 3, 32, 32), lambda model, x: model(x).sample.pow(2).mean(), name="autoencoder")
    assert "recompute" in bsmodel.trace(whole, Training(), a100).operations.phases
