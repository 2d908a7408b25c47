# SPDX-License-Identifier: Apache-2.0
"""What cannot be answered is refused in one clear line."""

import gzip
import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import bsmodel
from bsmodel.command import main
from tests.models import SGD, Attention, next_token, of_size, tokens, workload


def line_of(call, *arguments, **keywords):
    """The single line with which a call is refused."""
    with pytest.raises(bsmodel.BsmodelError) as refusal:
        call(*arguments, **keywords)
    message = str(refusal.value)
    assert "\n" not in message
    return message


def refused(capsys, *arguments):
    """What the command line prints on stderr when it refuses: exit code 2, nothing on stdout, no traceback."""
    try:
        code = main([*arguments])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err.strip().splitlines()[-1]


def test_unknown_names_show_the_nearest(capsys):
    assert refused(capsys, "plan", "resnet5", "--gpu", "a100-40gb") == "bsmodel: unknown model 'resnet5'; nearest: resnet50, detr-resnet-50, sdxl-unet"
    assert refused(capsys, "plan", "gpt2", "--gpu", "a100-40g").startswith("bsmodel: unknown GPU 'a100-40g'; nearest: a100-40gb")
    assert refused(capsys, "plan", "gpt2", "--optimizer", "adamW8bit").startswith("bsmodel: unknown optimizer 'adamW8bit'; nearest: adamw-8bit")
    assert refused(capsys, "plan", "gpt2", "--precision", "bf16mixed").startswith("bsmodel: unknown precision 'bf16mixed'; nearest: bf16-mixed")


def test_bf16_is_refused_on_a_card_without_it(capsys):
    message = refused(capsys, "plan", "gpt2", "--precision", "bf16", "--gpu", "t4-16gb")

    assert message == "bsmodel: t4-16gb has no bf16 arithmetic (compute capability 8.0 is needed); use precision fp16-mixed"
    assert "use precision fp16-mixed" in line_of(bsmodel.trace, workload(), bsmodel.Training(precision="bf16"), bsmodel.Gpu.named("t4-16gb"))


def triples(scores):
    return scores[:, :, None] - scores[:, None, :]


def subsets(scores):
    return scores.sum() * torch.zeros(2 ** len(scores), device=scores.device)


def shrinking(scores):
    return scores.sum() * torch.zeros((len(scores) - 10) ** 2, device=scores.device)


def capped(scores):
    return scores.sum() * torch.zeros(min(len(scores), 6) ** 2, device=scores.device)


@pytest.mark.parametrize(
    ("compared", "message"),
    [
        (triples, "aten.sub.Tensor in module model takes 32, 108, 500 bytes at batches 2, 3, 5: neither"),
        (subsets, "aten.zeros.default in module model takes 16, 32, 128 bytes at batches 2, 3, 5: neither"),
        (shrinking, "aten.zeros.default in module model takes 256, 196, 100 bytes at batches 2, 3, 5: neither"),
        (capped, "aten.zeros.default in module model takes 16, 36, 100, 144 bytes at batches 2, 3, 5, 7: neither"),
    ],
)
def test_a_step_that_is_no_parabola_in_the_batch_names_operation_and_module(compared, message):
    class Contrastive(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(768, 32)

        def forward(self, x):
            z = self.embed(x.flatten(1))
            return compared(z @ z.T)

    assert line_of(bsmodel.trace, workload(Contrastive, loss=lambda model, batch: model(batch[0]).mean()), SGD).startswith(message)


def test_a_step_that_takes_another_path_at_another_batch_says_from_where():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.narrow = nn.Linear(768, 8)

        def forward(self, x):
            z = self.narrow(x.flatten(1))
            return z.relu() if x.size(0) > 2 else z

    message = line_of(bsmodel.trace, workload(Branching, loss=lambda model, batch: model(batch[0]).mean()), SGD)
    assert "takes another path at batch" in message and "aten." in message


def test_an_output_whose_size_depends_on_values_names_file_and_line():
    class Selecting(nn.Module):
        def __init__(self):
            super().__init__()
            self.narrow = nn.Linear(768, 8)

        def forward(self, x):
            z = self.narrow(x.flatten(1))
            return z * torch.unique(z).size(0)

    message = line_of(bsmodel.trace, workload(Selecting, loss=lambda model, batch: model(batch[0]).mean()), SGD)
    assert "size depends on tensor values" in message and "test_refusals.py:" in message


def test_an_error_in_the_model_names_file_and_line():
    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.narrow = nn.Linear(10, 8)

        def forward(self, x):
            return self.narrow(x.flatten(1))

    message = line_of(bsmodel.trace, workload(Wrong, loss=lambda model, batch: model(batch[0]).mean()), SGD)
    assert message.startswith("small fails while it is recorded, at ") and "test_refusals.py:" in message and "RuntimeError" in message


def test_a_loss_that_is_no_scalar_says_what_it_is():
    assert "gives a tensor of shape (2, 10); expected a scalar tensor" in line_of(bsmodel.trace, workload(loss=lambda m, b: m(b[0])), SGD)
    assert "gives float; expected a scalar tensor" in line_of(bsmodel.trace, workload(loss=lambda m, b: 1.0), SGD)
    assert "does not depend on any trained parameter" in line_of(bsmodel.trace, workload(loss=lambda m, b: b[0].sum()), SGD)


def test_numbers_out_of_range(tape, a100, capsys):
    assert "of at least 1" in line_of(bsmodel.predict, tape, a100, 0)
    assert "target batch is 0" in line_of(bsmodel.plan, bsmodel.fit(tape, a100), target_batch=0)
    assert "samples is 0; expected a whole number of at least 1" in line_of(bsmodel.plan, bsmodel.fit(tape, a100), samples=0)
    assert "memory_bytes is -1; expected a number greater than 0" in line_of(a100.model_copy, update={"memory_bytes": -1})
    assert "'0' is no whole number of at least 1" in refused(capsys, "plan", "gpt2", "--target-batch", "0")
    assert "accumulation" in line_of(bsmodel.Training, accumulation=0)
    assert "nearest: checkpointing" in line_of(bsmodel.Training, checkpoint=True)


def test_a_hardware_file_with_a_wrong_field_names_it(tmp_path, capsys):
    text = (bsmodel.hardware.catalogue_folder() / "a100-40gb.toml").read_text()
    wrong, short = tmp_path / "wrong.toml", tmp_path / "short.toml"
    wrong.write_text(text.replace("sm_count", "smcount", 1))
    short.write_text("\n".join(line for line in text.splitlines() if not line.startswith("memory_bytes")))

    assert "sm_count" in refused(capsys, "plan", "gpt2", "--gpu", str(wrong))
    assert "memory_bytes" in refused(capsys, "plan", "gpt2", "--gpu", str(short))


def test_a_tape_of_another_version_or_none_at_all(tape, a100, tmp_path, capsys):
    path = tmp_path / "tape.json.gz"
    tape.save(path)
    with gzip.open(path, "rt") as stream:
        document = json.load(stream)
    with gzip.open(path, "wt") as stream:
        json.dump({**document, "schema_version": 99}, stream)
    (tmp_path / "no.json.gz").write_text("hello")

    assert "has schema version 99, this bsmodel reads 16: record it again" in refused(capsys, "plan", str(path))
    assert "cannot read the tape" in refused(capsys, "plan", str(tmp_path / "no.json.gz"))
    assert "cannot write the tape" in line_of(tape.save, tmp_path / "missing" / "tape.json.gz")
    assert "trace again with this GPU" in line_of(bsmodel.predict, tape, bsmodel.Gpu.named("h100-80gb"), 4)


def test_a_card_too_small_for_the_fixed_cost_says_how_much_is_missing(a100):
    def large():
        return nn.Sequential(nn.Flatten(), nn.Linear(768, 16384), nn.Linear(16384, 16384), nn.Linear(16384, 10))

    card = of_size(a100, 4096)
    found = bsmodel.fit(bsmodel.trace(workload(large), bsmodel.Training(optimizer="adamw"), card), card)

    assert found.batch == 0 and found.peak is None
    assert found.verdict.startswith("does not fit on a100-40gb: one sample needs")
    assert found.verdict.endswith("too much, at the optimizer step")  # what else would fit is tried where it can be recorded: test_remedies.py
    assert "does not fit" in line_of(bsmodel.plan, found)


def test_workloads_that_cannot_be_built(tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text("import torch\nnet = torch.nn.Linear(4, 4)\nnumber = 3\n")
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0\n")

    assert "gives Linear; expected a bsmodel.Workload" in refused(capsys, "plan", f"{mine}:net")
    assert "gives int; expected a bsmodel.Workload" in refused(capsys, "plan", f"{mine}:number")
    assert "nearest: net" in refused(capsys, "plan", f"{mine}:ne")
    assert "fails to run: ZeroDivisionError" in refused(capsys, "plan", f"{broken}:net")
    assert "no such file" in refused(capsys, "plan", f"{tmp_path}/absent.py:net")
    assert "cannot read 'absent/config.json'" in refused(capsys, "plan", "absent/config.json")
    assert "--input '3xx4' cannot be read" in refused(capsys, "plan", f"{mine}:net", "--input", "3xx4")
    assert "needs exactly one of loss" in line_of(bsmodel.Workload, model=Attention, batch=tokens)
    assert "expected a torch.nn.Module" in line_of(bsmodel.trace, workload(lambda: 3), SGD)
    assert "no parameter starts with 'body'" in line_of(bsmodel.trace, workload(), bsmodel.Training(frozen=("body",)))
    assert "no option 'seq-len'" in line_of(bsmodel.Workload.named, "resnet50", seq_len=128)


def test_a_user_step_is_recorded_and_its_optimizer_counted(a100):
    def step(model, optimizer, batch):
        x, y = (part.to("cuda") for part in batch)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = next_token(model, (x, y))[0]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    own = bsmodel.Workload(model=Attention, batch=tokens, step=step, name="own")
    mixed = bsmodel.Training(precision="bf16-mixed", optimizer="adamw")
    ours = bsmodel.Workload(model=Attention, batch=tokens, loss=next_token, name="ours")
    theirs, standard = (bsmodel.footprint(bsmodel.trace(w, t, a100)) for w, t in ((own, bsmodel.Training()), (ours, mixed)))

    assert abs(theirs(64) / standard(64) - 1) < 0.01


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_an_answer_that_cannot_be_written():
    with open("/dev/full", "w") as full:
        answer = subprocess.run([sys.executable, "-m", "bsmodel", "gpus"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)

    assert (answer.returncode, answer.stderr) == (2, "bsmodel: cannot write the answer: No space left on device\n")


def test_a_reader_who_leaves_early_is_no_error():
    command = subprocess.Popen([sys.executable, "-m", "bsmodel", "gpus", "--schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    command.stdout.close()

    assert (command.stderr.read(), command.wait()) == ("", 0)
    command.stderr.close()
