# SPDX-License-Identifier: Apache-2.0
"""Models from the user's own files: the loss of a bare module, the shapes it takes, and what is wrong with the file."""

import pytest
import torch

import bsmodel
from bsmodel.command import main
from bsmodel.workloads import bare_module

FP32 = bsmodel.Training(precision="fp32", optimizer="sgd")
NETS = """
import torch
from torch import nn

class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(5000, 8), nn.Linear(8, 5000)
    def forward(self, ids):
        return self.head(self.embed(ids))

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.narrow = nn.Linear(4, 4)
    def forward(self, x):
        return {"loss": self.narrow(x).pow(2).mean()}

class Two(Own):
    def forward(self, x):
        return self.narrow(x), x

class Tagger(Own):
    def forward(self, x):
        return self.narrow(x)[..., :3]

class Counting(Own):
    def forward(self, x):
        return x.size(0)

def classifier(): return nn.Sequential(nn.Flatten(), nn.Linear(48, 10))
def number(): return nn.Sequential(nn.Flatten(), nn.Linear(48, 1))
def autoencoder(): return nn.Conv2d(3, 3, 3, padding=1)
def segmenter(): return nn.Conv2d(3, 7, 3, padding=1)
def masker(): return nn.Conv2d(3, 1, 3, padding=1)
def downsampler(): return nn.Conv2d(3, 7, 2, stride=2)
volumes = nn.Conv3d(1, 2, 3, padding=1)
"""


@pytest.fixture
def nets(tmp_path):
    (tmp_path / "nets.py").write_text(NETS)
    return f"{tmp_path}/nets.py"


@pytest.fixture
def file(tmp_path):
    def write(text):
        (tmp_path / "mine.py").write_text(text)
        return f"{tmp_path}/mine.py"

    return write


def line_of(call, *arguments, **keywords):
    with pytest.raises(bsmodel.BsmodelError) as refusal:
        call(*arguments, **keywords)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def traced(source, shape, loss=None):
    return bsmodel.trace(bsmodel.Workload.named(source, input=shape, loss=loss), FP32)


# -- losses --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "shape", "said"),
    [
        ("Language", "6:long", "loss: cross-entropy over 5000 classes at each position, of outputs of 6x5000 a sample"),
        ("classifier", "3x4x4", "loss: cross-entropy over 10 classes, of outputs of 10 a sample"),
        ("number", "3x4x4", "loss: mse against targets of the output's shape, of outputs of 1 a sample"),
        ("autoencoder", "3x4x4", "loss: mse against targets of the output's shape, of outputs of 3x4x4 a sample"),
        ("segmenter", "3x4x4", "loss: cross-entropy over 7 classes at each position, of outputs of 7x4x4 a sample"),
        ("masker", "3x4x4", "loss: bce against targets of the output's shape, of outputs of 1x4x4 a sample"),
        ("downsampler", "3x4x4", "loss: mean, of outputs of 7x2x2 a sample"),
        ("Own", "4", "loss: mean, of outputs of one number a sample"),
        ("Two", "4", "loss: cross-entropy over 4 classes, of outputs of 4 a sample, the first of 2"),
        ("Tagger", "5x4", "loss: mean, of outputs of 5x3 a sample"),
    ],
)
def test_a_bare_module_is_given_the_loss_that_suits_its_output_and_says_which(nets, net, shape, said):
    assert traced(f"{nets}:{net}", shape).remarks == (f"{said}; chosen for this output, --loss asks for another",)


def test_the_loss_that_is_asked_for_is_the_one_computed(nets):
    for loss, said in (("cross-entropy", "cross-entropy over 3 classes at each position"), ("mse", "mse against"), ("bce", "bce against"), ("mean", "mean,")):
        (remark,) = traced(f"{nets}:Tagger", "5x4", loss).remarks
        assert remark.startswith(f"loss: {said}") and "chosen" not in remark
    assert "--loss cross-entropy needs classes; the module gives one number" in line_of(traced, f"{nets}:Own", "4", "cross-entropy")
    assert "unknown loss 'l1'" in line_of(traced, f"{nets}:Own", "4", "l1")
    assert "gives int without a tensor in it" in line_of(traced, f"{nets}:Counting", "4")


def test_a_language_model_takes_what_it_takes_with_a_loop_of_ones_own(nets):
    """Cross entropy over a large vocabulary is most of the memory; the mean of the logits is a third of it."""
    own = bsmodel.Workload(
        model=bsmodel.Workload.named(f"{nets}:Language", input="64:long").model,
        batch=lambda size: (torch.zeros(size, 64, dtype=torch.long), torch.zeros(size, 64, dtype=torch.long)),
        loss=lambda model, batch: torch.nn.functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten()),
    )
    peak, by_hand, mean = (
        bsmodel.footprint(tape)(32) for tape in (traced(f"{nets}:Language", "64:long"), bsmodel.trace(own, FP32), traced(f"{nets}:Language", "64:long", "mean"))
    )

    assert peak == pytest.approx(by_hand, rel=0.001) and peak > 1.4 * mean


def test_targets_live_as_long_as_the_batch(nets):
    workload = bsmodel.Workload.named(f"{nets}:autoencoder", input="3x4x4")
    batch = workload.batch(2)
    workload.loss(workload.model(), batch)

    assert batch["targets"].shape == (2, 3, 4, 4)


def test_the_command_names_the_loss(nets, capsys):
    asked = ("predict", f"{nets}:classifier", "--input", "3x4x4", "--batch", "2", "--gpu", "a100-40gb", "--no-cache")

    assert main([*asked, "--loss", "mse"]) == 0
    capsys.readouterr()
    assert main(["predict", "gpt2", "--loss", "mse", "--batch", "2"]) == 2
    assert "gpt2 has no option 'loss'" in capsys.readouterr().err


# -- shapes --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["3x4x4", "3,4,4", "3X4X4", " 3, 4, 4 ", "Nx3x4x4", "Bx3x4x4", "-1x3x4x4", "N,3,4,4", (3, 4, 4)])
def test_shapes_are_read_as_people_write_them(nets, shape):
    workload = bsmodel.Workload.named(f"{nets}:classifier", input=shape)

    assert workload.batch(2)["input"].shape == (2, 3, 4, 4)
    assert len(bsmodel.trace(workload, FP32).remarks) == 1


def test_a_leading_1_is_the_batch_only_where_the_module_takes_nothing_else(nets):
    tape = traced(f"{nets}:segmenter", "1x3x4x4")
    volume = traced(f"{nets}:volumes", "1x4x4x4")

    assert tape.remarks[0] == "the leading 1 of --input 1x3x4x4 is taken for the batch: the module takes samples of 3x4x4, not 1x3x4x4"
    assert (tape.fixed_bytes == traced(f"{nets}:segmenter", "3x4x4").fixed_bytes).all()
    assert len(volume.remarks) == 1 and "2x4x4x4 a sample" in volume.remarks[0]
    assert "fails while it is recorded" in line_of(traced, f"{nets}:segmenter", "8x3x4x4")


@pytest.mark.parametrize("shape", ["", "x", "3xx4", "0x4", "3x-4", "3x4.5", "²x3", "3x4:half", "N", "axb", "3x4x", "9" * 40])
def test_a_shape_that_cannot_be_read_is_one_line(nets, shape):
    assert "cannot be read; expected sizes of one sample such as 3x224x224" in line_of(bare_module, f"{nets}:classifier", shape)


def test_an_input_too_large_for_the_host_is_refused(nets):
    assert "one sample of 1000000x1000000 float32 takes 3725.29 GiB" in line_of(traced, f"{nets}:classifier", "1000000x1000000")


# -- files ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("a = 1\nb = (\n", 2, "SyntaxError: "),
        ("import sys\nsys.exit(3)\n", 2, "SystemExit: 3, which ends the process"),
        ("def f():\n    return f()\nf()\n", 2, "RecursionError: "),
        ("\n\n1 / 0\n", 3, "ZeroDivisionError: division by zero"),
        ("import json\njson.loads('x')\n", 2, "JSONDecodeError: "),
        ("import no_such_thing\n", 1, "No module named 'no_such_thing'"),
    ],
)
def test_a_file_that_fails_to_run_is_named_with_its_line(file, text, line, reason):
    path = file(text)
    message = line_of(bsmodel.Workload.named, f"{path}:workload")

    assert message.startswith(f"{path}:{line}: ") and reason in message


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return {}['x']", "KeyError: 'x'"),
        ("import sys; sys.exit(1)", "SystemExit: 1"),
        ("return 1 + 'a'", "TypeError: unsupported"),
        ("return make()", "RecursionError"),
    ],
)
def test_a_function_that_fails_is_named_with_its_line(file, body, reason):
    path = file(f"def make():\n    {body}\n")
    message = line_of(bsmodel.Workload.named, f"{path}:make")

    assert f"{path}:make fails when it is called, at {path}:2: " in message and reason in message


def test_options_that_nobody_takes_are_refused(file):
    path = file(
        "import bsmodel, torch\n"
        "def make(seq_len=8):\n"
        "    return bsmodel.Workload(lambda: torch.nn.Linear(seq_len, 1), lambda size: torch.zeros(size, seq_len), lambda m, b: m(b).mean())\n"
        "workload = make()\nnet = torch.nn.Linear(8, 1)\n"
    )

    assert bsmodel.Workload.named(f"{path}:make", seq_len=16).batch(2).shape == (2, 16)
    assert f"{path}:workload is a Workload, which takes no options; leave out seq-len" in line_of(bsmodel.Workload.named, f"{path}:workload", seq_len=16)
    assert "cannot be called with {'image_size': 3}" in line_of(bsmodel.Workload.named, f"{path}:make", image_size=3)
    assert "with --input has no option 'seq-len'; it takes: loss" in line_of(bsmodel.Workload.named, f"{path}:net", input="8", seq_len=16)
    assert "is a Workload, which makes its own batches; leave out --input" in line_of(bsmodel.Workload.named, f"{path}:workload", input="8")
    assert "--input is for a module of your own" in line_of(bsmodel.Workload.named, "gpt2", input="8")
