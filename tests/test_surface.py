# SPDX-License-Identifier: Apache-2.0
"""What users see: names, commands, their output, the wheel, and what is not imported."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import bsmodel
from bsmodel.command import main
from bsmodel.recording.cuda_like import autocast
from tests.models import SGD, Attention, next_token, tokens, workload

ROOT = Path(__file__).parent.parent
MINE = f"{ROOT}/tests/models.py:attention"
FOUR = ("--gpu", "rtx-3070-8gb", "--gpu", "l4-24gb", "--gpu", "h100-80gb", "--gpu", "t4-16gb")


def run(*arguments, **environment):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def test_the_public_names():
    assert dir(bsmodel) == sorted(
        "OPTIMIZERS PRECISIONS Allowance Baseline BsmodelError Emitted Envelope Fit Footprint Goal Gpu InvalidInputError Lengths MemoryTimeline "
        "ModuleRow NoiseScale OperatorRow Parallel Peak Plan Polynomial Price RateRange Row Settings Source StepTime Study Tape Timeline Training "
        "Trial UnknownNameError UntraceableError Verdict Workload breakdown by_module by_operator check emit find_batch fit footprint ladder longest "
        "lr_range memory_timeline noise_scale plan predict snapshot step_time study timeline trace trace_lengths trial".split()
    )
    assert bsmodel.trace.__module__ == "bsmodel.recording.tracing"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        bsmodel.nothing  # noqa: B018


def test_importing_bsmodel_does_not_import_torch():
    check = "import sys, bsmodel; bsmodel.Gpu.all(); sys.exit('torch' in sys.modules)"

    assert run("-c", check).returncode == 0
    assert run("-c", "import torch;" + check).returncode == 1  # the check can fail


def test_a_saved_tape_answers_without_torch(tape, tmp_path):
    path = tmp_path / "tape.json.gz"
    tape.save(path)
    check = (
        f"import sys, bsmodel; t = bsmodel.Tape.load({str(path)!r}); g = bsmodel.Gpu.named('a100-40gb');"
        "f = bsmodel.fit(t, g); bsmodel.plan(f, target_batch=100_000); print(f.batch); sys.exit('torch' in sys.modules)"
    )
    answer = run("-c", check)

    assert answer.returncode == 0 and int(answer.stdout) > 1000


def test_autocast_has_a_rule_for_every_operator_that_torch_casts_on_cuda():
    """The lists are data; the library says which operators there are."""
    registered = {
        name.removeprefix("aten::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("aten::") and torch._C._dispatch_has_kernel_for_dispatch_key(name, "AutocastCUDA")
    }
    listed = {*autocast.LOWER_PRECISION, *autocast.FLOAT32, *autocast.FLOAT32_OUTPUT, *autocast.FLOAT32_APPENDED, *autocast.PROMOTE, *autocast.BANNED}

    assert listed == registered


def test_recording_leaves_torch_as_it_was(tape):
    assert not torch.cuda.is_available() or torch.cuda.device_count()
    assert torch.zeros(1).device.type == "cpu" and torch.empty(1, device="meta").is_meta
    assert not torch.is_autocast_enabled("cuda")
    assert torch.nn.functional.dropout(torch.ones(4), 0.5).shape == (4,)


def test_a_profiler_in_another_thread_changes_no_recording(a100, tape):
    over, seen = threading.Event(), []

    def look_at_frames():
        while not over.is_set():
            frames = sys._current_frames()
            end = time.perf_counter() + 0.012
            while time.perf_counter() < end:  # longer than a thread's usual turn
                seen.append(len(frames))
            del frames
            time.sleep(0.0005)

    profiler = threading.Thread(target=look_at_frames)
    profiler.start()
    try:
        again = bsmodel.trace(workload(), SGD, a100)
    finally:
        over.set()
        profiler.join()

    assert len(seen) > 10 and again.blocks == tape.blocks and (again.sizes(7) == tape.sizes(7)).all()


def test_a_step_that_is_recorded_sees_a_cuda_device(a100):
    seen = []

    def loss(model, batch):
        outputs = model(batch[0])
        for tensor in (batch[0], outputs, model[0].weight, torch.ones(2, device=outputs.device), torch.ones(2)):
            seen.append((tensor.device.type, tensor.is_cuda, tensor.is_meta, tensor.get_device()))
        return torch.nn.functional.cross_entropy(outputs, batch[1])

    bsmodel.trace(workload(loss=loss), SGD, a100)

    assert seen[:4] == [("cuda", True, False, 0)] * 4 and seen[4] == ("cpu", False, False, -1)


def test_small_integers_can_be_asked_through_a_list_of_indices(a100):
    answers = set()

    def loss(model, batch):
        answers.update((0 in batch[0][:, [-1, 0]], 1 in batch[0][:, [-1, 0]]))
        return next_token(model, batch)

    bsmodel.trace(workload(Attention, tokens, loss), SGD, a100)

    assert answers == {True, False}


def command(capsys, *arguments):
    code = main([*arguments])
    return code, capsys.readouterr()


def golden(name, text):
    """Compare with tests/golden; set BSMODEL_OVERWRITE_GOLDEN=1 to write what is printed now, then read the difference."""
    path = ROOT / "tests" / "golden" / f"{name}.txt"
    if os.environ.get("BSMODEL_OVERWRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("plan", ("plan", MINE, "--cache", "--target-batch", "65536", "--samples", "1000000", "--epochs", "3", "--base-lr", "1e-3", "--base-batch", "256")),
        ("predict", ("predict", MINE, "--cache", "--batch", "512", "--precision", "fp16-mixed")),
        ("explain", ("explain", MINE, "--cache", "--batch", "512")),
        ("modules", ("explain", MINE, "--cache", "--batch", "512", "--by", "module")),
        ("operators", ("explain", MINE, "--cache", "--batch", "512", "--by", "operator")),
        ("compare", ("compare", MINE, "--cache", "--target-batch", "4096", "--samples", "1000000", "--epochs", "3", *FOUR, "--price", "h100-80gb=2.5")),
        ("gpus", ("gpus", "--min-memory", "80GB")),
    ],
)
def test_what_each_command_prints(name, arguments, capsys):
    code, printed = command(capsys, *arguments)

    assert code == 0
    golden(name, printed.out.replace(str(ROOT), "").replace(f"torch {torch.__version__.split('+')[0]}", "torch VERSION"))


def test_compare_takes_cards_of_ones_own_and_says_why_others_are_left_out(tmp_path, capsys):
    text = (bsmodel.hardware.catalogue_folder() / "rtx-3070-8gb.toml").read_text()
    mine = tmp_path / "mine.toml"
    mine.write_text(re.sub(r"aliases = .*", "aliases = []", text.replace('id = "rtx-3070-8gb"', 'id = "my-card"')))

    code, printed = command(capsys, "compare", MINE, "--precision", "bf16-mixed", "--gpu", str(mine), "--gpu", "t4-16gb", "--json")
    document = json.loads(printed.out)
    assert code == 0
    assert [item["gpu"] for item in document["gpus"]] == ["my-card"] and "no bf16" in document["not"]["t4-16gb"]


def test_compare_of_a_saved_tape_ranks_the_cards_it_holds_for(tape, tmp_path, capsys):
    tape.save(tmp_path / "tape.json.gz")

    code, printed = command(capsys, "compare", str(tmp_path / "tape.json.gz"), "--samples", "10000", "--epochs", "2", "--json")
    document = json.loads(printed.out)
    costs = [item["timing"]["cost_usd"] for item in document["gpus"] if item["timing"]["cost_usd"] is not None]
    assert code == 0 and costs == sorted(costs) and len(costs) > 5
    assert "trace again" in document["not"]["h100-80gb"]


def test_the_columns_of_explain_add_up(capsys):
    _, printed = command(capsys, "explain", MINE, "--batch", "512", "--json")
    document = json.loads(printed.out)

    for explained in document["gpus"]:
        assert sum(explained["by_category"].values()) == sum(explained["by_module"].values()) == explained["total_bytes"]


def test_exit_code_1_where_nothing_fits(tmp_path, capsys):
    text = (bsmodel.hardware.catalogue_folder() / "rtx-3070-8gb.toml").read_text()
    tiny = tmp_path / "tiny.toml"
    tiny.write_text(re.sub(r"memory_bytes = [\d_]+", "memory_bytes = 222_000_000", text, count=1))

    code, printed = command(capsys, "plan", MINE, "--gpu", str(tiny))
    assert code == 1
    assert "does not fit on rtx-3070-8gb" in printed.out.replace("\n", " ")
    assert command(capsys, "predict", MINE, "--batch", "8", "--gpu", str(tiny))[0] == 1


def test_a_bare_module_needs_only_the_shape_of_a_sample(tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text("import torch\ndef net():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))\n")

    code, printed = command(capsys, "plan", f"{mine}:net", "--input", "3x2x2", "--gpu", "rtx-3070-8gb", "--json")
    assert code == 0 and json.loads(printed.out)["gpus"][0]["largest_batch"] > 1000


def test_configs_of_transformers_and_diffusers(tmp_path, capsys):
    pytest.importorskip("transformers")
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps({"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 256})
    )

    code, printed = command(capsys, "predict", str(config), "--seq-len", "64", "--batch", "4", "--gpu", "h100-80gb", "--json")
    assert code == 0 and json.loads(printed.out)["gpus"][0]["fits"]


@pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning", "ignore::FutureWarning")
def test_lora_trains_only_its_adapters(a100):
    pytest.importorskip("peft")
    pytest.importorskip("transformers")
    workload = bsmodel.Workload.named("gpt2", seq_len=64)
    tape = bsmodel.trace(workload, bsmodel.Training(precision="bf16", lora_rank=8), a100)

    assert 0 < tape.trained_parameter_count < 0.03 * tape.parameter_count


def test_the_wheel_finds_its_hardware(tmp_path):
    pytest.importorskip("hatchling")
    built = run("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT))
    assert built.returncode == 0, built.stderr
    wheel = next(tmp_path.glob("*.whl"))
    target = tmp_path / "site"
    assert run("-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)).returncode == 0

    found = run("-c", "import bsmodel; print(bsmodel.__file__, len(bsmodel.Gpu.all()))", PYTHONPATH=str(target), PYTHONSAFEPATH="1")
    place, count = found.stdout.split()
    assert place.startswith(str(target)) and int(count) == len(bsmodel.Gpu.all())
