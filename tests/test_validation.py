# SPDX-License-Identifier: Apache-2.0
"""Validation without a GPU: rows, children, searches, gradients, calibration and refusals."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import bsmodel
from bsmodel.command import main
from bsmodel.validation import calibration, cases, child, environment, gradients_agree, jobs, rows, running, searching
from tests.models import SGD, attention, convolutional, images, workload
from tests.test_refusals import refused

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"

MINE = f"{Path(__file__).parent}/models.py:attention"


def case(name="mine", **fields):
    return cases.Case(name, "a100-40gb", SGD, **fields)


def bench(path, python=(), seconds=60.0, **fields):
    return running.Bench(path, bsmodel.Gpu.named("a100-40gb"), {"gpu": "a100-40gb"}, time.monotonic() + seconds, tuple(python), **fields)


def interpreter(folder, body):
    """A command that runs `body` in place of a child's job, in a real process."""
    script = folder / "stand_in.py"
    script.write_text(f"import json, os, signal, sys, time\njob = json.loads(sys.stdin.readline())\n{body}\n")
    return (sys.executable, str(script))


# -- children ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
        ("os._exit(3)", "exit code 3"),
        ("print('no news')", "ended without a result"),
        ("raise MemoryError('host')", "exit code 1: MemoryError: host"),
        ("print(json.dumps({'failure': 'OutOfMemoryError: full'}))", "OutOfMemoryError: full"),
        ("time.sleep(30)", "took longer than 1 s"),
    ],
)
def test_a_child_that_gives_no_result_says_why_in_one_line(tmp_path, body, reason):
    with pytest.raises(child.ChildFailedError) as failure:
        child.run({"do": "step"}, interpreter(tmp_path, body), timeout_s=1 if "sleep" in body else 20)

    assert str(failure.value) == reason


def test_a_crash_is_a_row_and_the_next_case_runs(tmp_path):
    body = "os.kill(os.getpid(), signal.SIGSEGV) if job['batch'] == 1 else print('noise\\n' + json.dumps({'result': {'seen': job['batch']}}))"
    python = interpreter(tmp_path, body)

    def runner(bench, case):
        yield rows.row("hardware", case.key, rows.MEASURED, measured=bench.child({"do": "step", "batch": case.batch}), environment=bench.environment)

    outcome = running.run(bench(tmp_path / "rows.jsonl", python), "hardware", [case(batch=1), case(batch=2)], runner)
    first, second = rows.read(tmp_path / "rows.jsonl")

    assert outcome == running.Outcome(2, 0)
    assert first["status"] == "failed" and first["reason"] == "killed by SIGSEGV"
    assert second["status"] == "measured" and second["measured"] == {"seen": 2}


# -- going on where a run stopped --------------------------------------------------------------------------------------------------------


def test_cases_in_the_file_are_not_run_again_and_failures_only_on_request(tmp_path):
    out, ran = tmp_path / "rows.jsonl", []

    def runner(bench, case):
        ran.append(case.batch)
        if case.batch == 2 and ran.count(2) == 1:
            raise bsmodel.InvalidInputError("not this time")
        yield rows.row("hardware", case.key, rows.MEASURED, measured={}, environment={})

    wanted = [case(batch=1), case(batch=2)]
    running.run(bench(out), "hardware", wanted, runner)
    running.run(bench(out), "hardware", [*wanted, case(batch=3)], runner)
    assert ran == [1, 2, 3]

    running.run(bench(out, retry=True), "hardware", wanted, runner)
    assert ran == [1, 2, 3, 2]
    assert [item["status"] for item in rows.read(out)] == ["measured"] * 3


def test_half_a_line_left_by_an_interrupted_run_spoils_nothing(tmp_path):
    out = tmp_path / "rows.jsonl"
    rows.append(out, rows.row("hardware", "one", rows.MEASURED))
    with out.open("a") as stream:
        stream.write('{"schema_version": 1, "kind": "hard')
    assert [item["case"] for item in rows.read(out)] == ["one"]

    rows.append(out, rows.row("hardware", "two", rows.MEASURED))
    assert [item["case"] for item in rows.read(out)] == ["one", "two"]
    assert out.read_text().count("\n") == 2


def test_nothing_new_starts_when_the_time_is_spent(tmp_path):
    def runner(bench, case):
        raise AssertionError("started")

    assert running.run(bench(tmp_path / "rows.jsonl", seconds=0), "step", [case(batch=1)], runner) == running.Outcome(0, 1)


def test_a_case_cut_off_by_the_end_of_the_time_gets_no_row(tmp_path):
    python = interpreter(tmp_path, "time.sleep(30)")

    def runner(bench, case):
        yield bench.child({"do": "step"})

    assert running.run(bench(tmp_path / "rows.jsonl", python, seconds=1), "step", [case(batch=1)], runner) == running.Outcome(0, 1)
    assert not (tmp_path / "rows.jsonl").exists()


# -- what is run -------------------------------------------------------------------------------------------------------------------------


def test_every_workload_comes_once_before_any_comes_twice():
    pytest.importorskip("transformers")
    found = cases.matrix(["gpt2", "vit-b-16"], "a100-40gb", supports_bf16=True)

    assert [item.workload for item in found[:2]] == ["gpt2", "vit-b-16"]
    assert {item.training.precision for item in found[:2]} == {"bf16-mixed"} and not any(item.training.checkpointing for item in found[:2])
    assert len(found) == len({item.key for item in found}) == 2 * 3 * 2 * 3
    assert not any(item.training.precision == "bf16-mixed" for item in cases.matrix(["gpt2"], "t4-16gb", supports_bf16=False))
    assert [item.batch for item in cases.matrix(["gpt2"], "a100-40gb", True, batches=(4, 8), changes={"precision": "fp32"})] == [4, 8]


def test_a_child_gets_the_recipe_that_the_parent_predicts():
    wanted = bsmodel.Training(precision="bf16-mixed", optimizer="adamw", checkpointing=True)
    job = running.job_of(cases.Case(MINE, "a100-40gb", wanted, batch=3), do="step")

    assert jobs.recipe_of(json.loads(json.dumps(job)))[1] == wanted


def test_a_card_is_only_taken_for_a_row_that_is_its_own():
    known = {"name": "NVIDIA A100-SXM4-40GB", "memory_bytes": 42_298_834_944, "compute_capability": "8.0", "sm_count": 108, "l2_bytes": None}
    sliced = {**known, "memory_bytes": known["memory_bytes"] // 2}
    unknown = {**known, "name": "NVIDIA Unheard Of (9000)"}

    assert (environment.card(known)[0].id, environment.card(known)[1]) == ("a100-40gb", True)
    for device in (sliced, unknown):
        gpu, in_catalogue = environment.card(device)
        assert not in_catalogue and gpu.id != "a100-40gb"
        assert (gpu.memory_bytes, gpu.compute_capability, gpu.sm_count) == (device["memory_bytes"], "8.0", 108)


@pytest.mark.parametrize("predicted", [0, 1, 40, 99, 100, 101, 160, 700])
@pytest.mark.parametrize("limit", [0, 1, 100])
def test_the_search_finds_the_last_batch_that_survives_wherever_it_starts(predicted, limit):
    found = searching.largest_survivor(lambda batch: batch <= limit, predicted)

    assert (found.largest, found.first_failure) == (limit, limit + 1)
    assert found.trials <= 25


def test_a_right_prediction_takes_two_trials():
    assert searching.largest_survivor(lambda batch: batch <= 20, 20) == searching.Search(20, 21, 2)


# -- gradients ---------------------------------------------------------------------------------------------------------------------------


def test_accumulated_gradients_are_those_of_the_full_batch():
    found = gradients_agree(attention(), micro_batch=2, accumulation=3, device="cpu")

    assert found.agree and found.difference < 1e-5


def test_a_loss_that_is_a_sum_does_not_pass_for_a_mean():
    def summed(model, batch):
        return nn.functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten(), reduction="sum")

    plain = attention()
    found = gradients_agree(workload(plain.model, plain.batch, summed), micro_batch=2, accumulation=2, device="cpu")
    assert not found.agree and found.difference == pytest.approx(0.5, rel=1e-3)


def test_gradients_that_are_not_meant_to_agree_are_refused():
    def noisy(model, batch):
        return (model(batch[0]) * torch.randn(batch[0].size(0), 1)).mean()

    with pytest.raises(bsmodel.InvalidInputError, match="has batch norm"):
        gradients_agree(workload(convolutional), 2, 2, "cpu")
    with pytest.raises(bsmodel.InvalidInputError, match="draws random numbers"):
        gradients_agree(workload(lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 10)), images, noisy), 2, 2, "cpu")


# -- calibration -------------------------------------------------------------------------------------------------------------------------

CARD = {"name": "NVIDIA A100-SXM4-40GB", "memory_bytes": 42_298_834_944, "compute_capability": "8.0", "driver": "580.1", "date": "2026-11-20"}


def recorded(count=20, context_bytes=400 << 20, **device):
    made = []
    for number in range(count):
        reserved = (number + 1) << 30
        measured = {"allocated_bytes": reserved, "reserved_bytes": reserved, "device_bytes": reserved + context_bytes, "context_bytes": context_bytes}
        measured |= {"out_of_memory": False, "device_bytes_from": "nvml", "step_seconds": 0.1}
        predicted = {"allocated_bytes": reserved, "reserved_bytes": reserved, "device_bytes": reserved + (500 << 20), "fits": True, "step_seconds": None}
        content = {"workload": "mine", "gpu": "a100-40gb", "batch": number, "environment": {"gpu": "a100-40gb", **CARD, **device}}
        made.append(rows.row("step", f"mine a100-40gb b={number}", rows.MEASURED, predicted=predicted, measured=measured, **content))
    rates = {"matmul_flops_per_s": {"fp16": 234e12, "fp32": 13e12}, "copy_bytes_per_s": 1.3e12, "launch_seconds": 4.2e-6}
    made.append(rows.row("hardware", "rates", rows.MEASURED, gpu="a100-40gb", measured=rates, environment={"gpu": "a100-40gb", **CARD, **device}))
    return made


def convolved(**taken):
    """The row of what single convolutions took, by kind, of a planned mebibyte each."""
    kinds = {kind.replace("_", " "): {"wanted_bytes": 1 << 20, "taken_bytes": size, "probes": 1} for kind, size in taken.items()}
    return rows.row("workspaces", "convolutions", rows.MEASURED, gpu="a100-40gb", measured={"kinds": kinds}, environment={"gpu": "a100-40gb", **CARD})


def written(path, items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def test_calibration_writes_a_row_of_the_users_own_with_its_provenance(tmp_path, capsys):
    source, target = written(tmp_path / "rows.jsonl", recorded()), tmp_path / "my_gpu.toml"
    assert main(["validate", "--calibrate", str(source), "--out", str(target)]) == 0
    gpu, known = bsmodel.Gpu.load(target), bsmodel.Gpu.named("a100-40gb")

    assert gpu.context_bytes == 400 << 20 and gpu.launch_seconds == 4.2e-6
    assert gpu.matmul_efficiency == {"fp16": 0.75, "fp32": pytest.approx(0.6667, abs=1e-4)}
    assert gpu.memory_bytes == known.memory_bytes and gpu.price_usd_per_hour == known.price_usd_per_hour
    provenance = gpu.source_of("context_bytes")
    assert provenance.kind == "measured" and "rows.jsonl" in provenance.source and str(gpu.calibrated_on) == "2026-11-20"
    assert "held out" in capsys.readouterr().out and known.calibrated_on is None


def test_calibration_writes_which_workspaces_the_card_takes(tmp_path):
    taken = convolved(contiguous_half_dense_forward=900_000, contiguous_tf32_dense_forward=200_000)
    (tmp_path / "my_gpu.toml").write_text(calibration.toml(calibration.calibrate([*recorded(), taken], "rows.jsonl").gpu))
    gpu = bsmodel.Gpu.load(tmp_path / "my_gpu.toml")

    assert gpu.workspaces == {"contiguous half dense forward": True, "contiguous tf32 dense forward": False}
    assert gpu.source_of("workspaces").kind == "measured"


def test_calibration_reports_errors_only_on_cases_it_did_not_use():
    found = calibration.calibrate(recorded(), "rows.jsonl")
    used, held_out = set(found.errors["calibrated_on"]), set(found.errors["held_out"])

    assert used and held_out and not used & held_out
    assert found.errors["device_error_median_after"] == 0 < found.errors["device_error_median_before"]
    assert used == set(calibration.calibrate(recorded()[::-1], "rows.jsonl").errors["calibrated_on"])


def test_an_answer_says_that_it_rests_on_a_calibrated_row(tmp_path, capsys):
    target = tmp_path / "my_gpu.toml"
    target.write_text(calibration.toml(calibration.calibrate(recorded(), "rows.jsonl").gpu))

    assert main(["predict", MINE, "--batch", "8", "--gpu", str(target)]) == 0
    assert f"GPU row a100-40gb from {target} (measured 2026-11-20)" in capsys.readouterr().out
    assert main(["predict", MINE, "--batch", "8", "--gpu", str(target), "--json"]) == 0
    assert "measured 2026-11-20" in json.loads(capsys.readouterr().out)["notes"][0]


def test_a_row_of_every_catalogue_gpu_survives_being_written():
    for gpu in bsmodel.Gpu.all():
        import tomllib

        assert bsmodel.Gpu.model_validate(tomllib.loads(calibration.toml(gpu))) == gpu


# -- refusals ----------------------------------------------------------------------------------------------------------------------------


def test_without_a_device_one_line_says_how_to_run_it_and_nothing_is_written(tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a device here")
    message = refused(capsys, "validate", MINE, "--out", str(tmp_path / "x.jsonl"))

    assert message == "bsmodel: no CUDA device here: run this on the machine with the GPU, e.g. bsmodel validate resnet50 --out rows.jsonl"
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_validated_is_refused_in_one_line(tmp_path, capsys):
    broken, other, several = tmp_path / "broken.jsonl", tmp_path / "other.jsonl", tmp_path / "several.jsonl"
    broken.write_text('{"case": "a"\n{}\n')
    other.write_text('{"hello": 1}\n')
    written(several, [*recorded(2), *recorded(2, name="NVIDIA H100", memory_bytes=85 << 30)[:1]])
    out = str(tmp_path / "out.toml")

    assert "--out FILE is missing" in refused(capsys, "validate", "resnet50")
    assert "two questions" in refused(capsys, "validate", "--largest", "--report", str(broken))
    assert "line 1 is not JSON" in refused(capsys, "validate", "--report", str(broken))
    assert "line 1 is no row" in refused(capsys, "validate", "--report", str(other))
    assert "cannot read" in refused(capsys, "validate", "--report", str(tmp_path / "absent.jsonl"))
    assert "no such folder" in refused(capsys, "validate", "--report", str(several), "--out-dir", str(tmp_path / "absent"))
    assert "cannot write" in refused(capsys, "validate", "--report", str(several), "--html", str(tmp_path / "absent" / "x.html"))
    assert "several cards" in refused(capsys, "validate", "--calibrate", str(several), "--out", out)
    assert "do not say on which card" in refused(capsys, "validate", "--calibrate", str(RESULTS / "largest.jsonl"), "--out", out)
    assert "unknown model 'resnet5'" in refused(capsys, "validate", "resnet5", "--out", out)
    assert "no positive number" in refused(capsys, "validate", "--minutes", "0")
    assert not Path(out).exists()


def test_the_package_loads_torch_only_when_it_measures():
    check = "import sys, bsmodel.command, bsmodel.command.validate, bsmodel.validation.rows, bsmodel.validation.page;"
    check += "sys.exit(bool({'torch', 'altair'} & {*sys.modules}))"

    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
    assert subprocess.run([sys.executable, "-c", f"import bsmodel.validation; bsmodel.validation.measure; {check}"], check=False).returncode == 1
