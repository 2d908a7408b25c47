# SPDX-License-Identifier: Apache-2.0
"""Steps of the user's own, and models as their factories make them: what the recipe says of them is done, refused, or remarked."""

import concurrent.futures
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import bsmodel
from bsmodel import Training, Workload
from tests.models import SGD, Attention, attention, cross_entropy, images, next_token, tokens, workload
from tests.test_refusals import line_of
from tests.test_steps import Narrow, mean

HERE = "test_own_steps.py:"


def own(step, model=Attention, batch=tokens):
    return Workload(model=model, batch=batch, step=step, name="own")


def plain_step(model, optimizer, batch):
    x, y = (part.to("cuda") for part in batch)
    next_token(model, (x, y))[0].backward()
    optimizer.step()
    optimizer.zero_grad()


# -- a step of the user's own ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe", [{"precision": "bf16-mixed"}, {"gradient_clipping": 1.0}, {"accumulation": 4}, {"zero_grad": "zeros"}, {"keep_outputs": True}]
)
def test_what_an_own_step_does_not_do_is_not_claimed(recipe):
    message = line_of(bsmodel.trace, own(plain_step), Training(**recipe))
    assert message.startswith("own has a step of its own, to which ") and message.endswith("leave it out of the recipe")


def test_what_can_be_applied_to_an_own_step_is():
    def convolving(model, optimizer, batch):
        cross_entropy(model, tuple(part.to("cuda") for part in batch))[0].backward()
        optimizer.step()
        optimizer.zero_grad()

    images_last = Workload(workload().model, images, step=convolving, name="own")
    plain, averaged = (bsmodel.trace(images_last, Training(ema=ema)) for ema in (False, True))
    assert averaged.fixed_bytes[list(averaged.blocks["init"])].sum() > plain.fixed_bytes[list(plain.blocks["init"])].sum()

    def convolved(asked, channels_last):
        tape = bsmodel.trace(asked, Training(channels_last=channels_last))
        return sorted(size for size, operator in zip(tape.sizes(64), tape.operators, strict=True) if "convolution" in operator)

    assert convolved(images_last, True) == convolved(workload(), True) != convolved(images_last, False)


def test_a_step_that_trains_on_the_host_is_refused():
    def on_host(model, optimizer, batch):
        next_token(model.cpu(), batch)[0].backward()

    other = Attention()

    def elsewhere(model, optimizer, batch):
        next_token(other, batch)[0].backward()

    message = line_of(bsmodel.trace, own(on_host))
    assert "from the device to the host, at " in message and HERE in message
    assert "never calls the model it is given" in line_of(bsmodel.trace, own(elsewhere))
    assert "one device" in line_of(bsmodel.trace, own(lambda model, optimizer, batch: next_token(model, batch)[0].backward()))


def test_a_step_that_ends_the_process_is_refused():
    def leaving(model, batch):
        sys.exit(3)

    message = line_of(bsmodel.trace, workload(loss=leaving), SGD)
    assert message.startswith(f"small ends the process while it is recorded, at {__file__}:")


# -- the model itself ------------------------------------------------------------------------------------------------------------------


def test_parameters_of_several_dtypes_stay_as_they_are():
    class Adapted(Narrow):
        def __init__(self):
            super().__init__()
            self.narrow.requires_grad_(False)
            self.adapter = nn.Linear(8, 4, dtype=torch.float32)
            self.narrow.to(torch.bfloat16)

        def forward(self, x):
            return self.adapter(self.narrow(x.flatten(1)).float())

    tape = bsmodel.trace(workload(Adapted, loss=mean), Training(precision="bf16"))
    assert tape.remarks == ("parameters stay as the model was built, in bfloat16 and float32; precision bf16 would have them in bfloat16",)
    sizes = {tape.modules[i]: tape.fixed_bytes[i] for i in tape.blocks["init"] if tape.categories[i] == "parameter" and tape.fixed_bytes[i] > 100}
    assert sizes == {"narrow": 768 * 8 * 2, "adapter": 8 * 4 * 4}


def test_parameters_of_one_dtype_are_cast_and_the_answer_says_so():
    tape = bsmodel.trace(workload(lambda: Narrow().to(torch.bfloat16), loss=mean), SGD)
    assert tape.remarks == ("parameters, bfloat16 as the model was built, are cast to float32 for precision fp32",)
    assert 768 * 8 * 4 in tape.fixed_bytes


def test_a_constructor_may_run_its_model():
    class Hybrid(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.Conv2d(64, 128, 3, 2))
            with torch.no_grad():
                size = self.stem.eval()(torch.zeros(1, 3, 16, 16)).shape
            self.stem.train()
            self.head = nn.Linear(size[1] * size[2] * size[3], 10)

        def forward(self, x):
            return self.head(self.stem(x).flatten(1))

    assert bsmodel.trace(workload(Hybrid), SGD).parameter_count == 64 * 27 + 64 + 128 + 128 * 576 + 128 + 7 * 7 * 128 * 10 + 10


def test_recordings_in_two_threads_are_those_of_one():
    asked = [workload(), attention(), workload(), attention()]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda one: bsmodel.trace(one, SGD), asked))
    for tape, one in zip(together, asked, strict=True):
        alone = bsmodel.trace(one, SGD)
        assert (tape.sizes(8) == alone.sizes(8)).all() and tape.blocks == alone.blocks
    assert not torch.cuda.is_available()


def test_nothing_of_a_recording_stays_behind():
    """Two processes, of which one has recorded another model before, give the same tape."""
    program = (
        "import torch, bsmodel\n"
        "from tests.models import *\n"
        "from tests.test_steps import narrow\n"
        "import sys\n"
        "def masks(hits):\n"
        "    def make(size):\n"
        "        mask = torch.zeros(size, 16, dtype=torch.bool)\n"
        "        mask[:, :hits] = True\n"
        "        return torch.zeros(size, 768), mask\n"
        "    return make\n"
        "from tests.test_steps import Narrow\n"
        "loss = lambda model, batch: model(batch[0]).mean() * torch.nonzero(batch[1]).float().mean()\n"
        "for hits in map(int, sys.argv[1:]):\n"
        "    tape = bsmodel.trace(workload(Narrow, masks(hits), loss), SGD)\n"
        "print(int(tape.fixed_bytes.sum()), int(tape.per_sample_bytes.sum()), torch.cuda.is_available())\n"
    )
    alone, after = (
        subprocess.run(
            [sys.executable, "-c", program, *hits], capture_output=True, text=True, check=True, cwd=os.path.dirname(os.path.dirname(__file__))
        ).stdout
        for hits in (("5",), ("10", "5"))
    )
    assert alone == after and alone.endswith("False\n")
