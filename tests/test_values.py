# SPDX-License-Identifier: Apache-2.0
"""Values that nobody knows: what a step reads, checks, selects by or leaves to chance, and what is taken for it."""

import random

import numpy as np
import torch
from torch import nn

import bsmodel
from bsmodel import Training, Workload
from bsmodel.recording.assumed import ALL, CHANCE
from tests.models import SGD, cross_entropy, images, workload
from tests.test_refusals import line_of
from tests.test_steps import narrow

HERE = "test_values.py:"


def test_a_value_read_outside_of_any_module_is_remarked():
    def logged(model, batch):
        loss, outputs = cross_entropy(model, batch)
        print(end=f"{loss.item():.0f}"[:0])
        return loss, outputs

    tape = bsmodel.trace(workload(loss=logged), SGD)
    assert len(tape.remarks) == 1
    assert f"values read at {__file__}:" in tape.remarks[0] and "gave the same recording" in tape.remarks[0]


def test_a_check_is_answered_as_where_nothing_is_wrong():
    def careful(module, z):
        assert torch.isfinite(z).all()
        assert z.abs().max() < 1e4
        if torch.allclose(z, torch.zeros_like(z)):
            raise ValueError("dead")
        if torch.isnan(z.mean()):
            return z.exp().sin()
        drawn = torch.distributions.Normal(z.mean(), z.exp().mean(), validate_args=True).sample()
        return z + drawn + torch.distributions.Categorical(logits=z, validate_args=True).entropy().mean()

    tape = bsmodel.trace(narrow(careful), SGD)
    line = careful.__code__.co_firstlineno
    checks = next(remark for remark in tape.remarks if "as where nothing is wrong" in remark)
    assert all(f"{HERE}{line + offset}" in remark for offset, remark in ((1, tape.remarks[0]), (2, checks), (5, tape.remarks[0])))
    assert "distributions" in checks and "aten.sin.default" not in tape.operators and len(tape.remarks) == 2


def test_what_a_value_decides_takes_the_most_there_can_be():
    for branch in (lambda z: z.exp().sin() if z.sum() > 0 else z, lambda z: z if z.sum() > 0 else z.exp().sin()):
        tape = bsmodel.trace(narrow(lambda module, z, branch=branch: branch(z)), SGD)
        assert "aten.sin.default" in tape.operators
        assert tape.remarks == (f"what values at {__file__}:{branch.__code__.co_firstlineno} decide is taken as it takes the most memory",)


def test_questions_that_are_too_many_to_be_tried_are_named():
    source = "def after(module, z):\n" + "    z = z.exp() if z.sum() > 0 else z\n" * 8 + "    return z\n"
    names = {}
    exec(compile(source, __file__ + ".many.py", "exec"), names)
    remarks = bsmodel.trace(narrow(names["after"]), SGD).remarks

    assert [remark.count(".many.py:") for remark in remarks] == [6, 2]
    assert "was not tried otherwise" in remarks[1]


def test_what_values_select_is_taken_whole():
    def selecting(module, z):
        rows, columns = torch.where(z > 1)
        return z[z > 0].square().sum() + torch.masked_select(z, z > 0).exp().sum() + z[rows, columns].sin().sum()

    tape = bsmodel.trace(narrow(selecting), SGD)
    slopes = {name: {int(tape.per_sample_bytes[i]) for i, operator in enumerate(tape.operators) if operator == name} for name in set(tape.operators)}
    assert slopes["aten.index.Tensor"] == slopes["aten.masked_select.default"] == slopes["aten.exp.default"] == slopes["aten.sin.default"] == {8 * 4}
    assert tape.remarks == (f"assumed at {', '.join(f'{__file__}:{selecting.__code__.co_firstlineno + offset}' for offset in (1, 2))}: {ALL}",)


def test_a_share_of_the_batch_is_taken_whole():
    """Seven tenths of 2, 3 and 5 samples are 1, 2 and 3: no line in the batch."""

    def hardest(model, x):
        losses = model(x).square().sum(-1)
        return losses.topk(int(0.7 * losses.numel())).values.exp().mean()

    tape = bsmodel.trace(workload(lambda: nn.Linear(8, 16), lambda size: torch.zeros(size, 8), hardest), SGD)

    assert {int(tape.per_sample_bytes[i]) for i, name in enumerate(tape.operators) if name == "aten.exp.default"} == {4}
    assert any("there is to select from" in remark for remark in tape.remarks)


def test_what_chance_decides_on_the_host_takes_the_most_there_can_be():
    def kept(keep):
        return bsmodel.trace(narrow(lambda module, z: z.exp().sin() if keep() else z), SGD)

    all_of_it, nothing = kept(lambda: True), kept(lambda: False)
    for keep in (
        lambda: random.random() < 0.1,
        lambda: random.random() > 0.1,
        lambda: torch.rand([]) > 0.5,
        lambda: (False, True)[int(torch.empty(1).uniform_(0, 2))],
        lambda: np.random.uniform(0, 1) < 0.5,
    ):
        tape = kept(keep)
        assert tape.operators == all_of_it.operators != nothing.operators
        assert tape.remarks == (f"assumed at {__file__}:{keep.__code__.co_firstlineno}: {CHANCE}",)
    assert bsmodel.trace(narrow(lambda module, z: z * random.uniform(0.9, 1.1)), SGD).remarks == ()  # nothing hangs on it
    for keep in (lambda: torch.rand(1) > 0.0, lambda: random.random() > 0.0):  # a rate of 0, as peft's LoHa and LoKr ask for it: nothing is dropped
        assert kept(keep).remarks == ()


def test_batches_are_left_to_chance():
    def batch(size):
        assert len({random.random() for _ in range(3)}) == 3
        return images(size)

    assert bsmodel.trace(workload(batch=batch), SGD).remarks == ()


def test_a_step_that_hangs_on_a_value_is_refused():
    def skipping(model, batch):
        loss, outputs = cross_entropy(model, batch)
        return (loss * outputs.exp().mean(), outputs) if loss.item() > 10 else (loss, outputs)

    def training(model, optimizer, batch):
        loss = cross_entropy(model, tuple(part.to("cuda") for part in batch))[0]
        loss.backward()
        if loss.item() < 100:
            optimizer.step()
        optimizer.zero_grad()

    for asked in (workload(loss=skipping), Workload(workload().model, images, step=training, name="own")):
        message = line_of(bsmodel.trace, asked, Training(optimizer="adamw"))
        assert f"reads values at {__file__}:" in message and "hangs on them" in message


def test_a_loop_that_waits_for_a_value_ends():
    def waiting(model, batch):
        loss, outputs = cross_entropy(model, batch)
        while loss.item() > 0.1:
            loss = loss * 0.5
        return loss, outputs

    def asking(model, batch):
        loss, outputs = cross_entropy(model, batch)
        while not (loss < 0.1):
            loss = loss * 0.5
        return loss, outputs

    assert "again and again" in line_of(bsmodel.trace, workload(loss=waiting), SGD)
    assert "again and again" in line_of(bsmodel.trace, workload(loss=asking), SGD)
