# SPDX-License-Identifier: Apache-2.0
"""`bsmodel validate` from the command line to the file, with children that play a card: real processes, made-up figures."""

import json
import sys
from pathlib import Path

import pytest

import bsmodel
from bsmodel.command import main
from bsmodel.recording.probes import DIRECTIONS, probes
from bsmodel.units import GiB
from bsmodel.validation import rows
from tests.models import of_size
from tests.test_refusals import refused

MINE = f"{Path(__file__).parent}/models.py:attention"
GPU = bsmodel.Gpu.named("a100-40gb")

# What its convolutions take besides their outputs: all that could be wanted in half precision, nothing in float32.
WORKSPACES = {probe.name: dict.fromkeys(DIRECTIONS, GiB if probe.dtype == "float16" else 0) for probe in probes()}

# A card on which a batch needs 100 MiB and 1 MiB a sample, and runs out of memory at what it may reserve.
CARD = """
import json, sys
job = json.loads(sys.stdin.readline())
print("loading ...")
need = (100 + job.get("batch", 0)) << 20
fits = need <= (job.get("capacity_bytes") or CAPACITY)
figures = {"allocated_bytes": need, "reserved_bytes": need}
answers = {
    "device": {"name": NAME, "memory_bytes": MEMORY, "compute_capability": "8.0", "torch": "2.13.0", "driver": "580.1"},
    "hardware": {"tiny_step_seconds": 4e-3, "matmul_flops_per_s": {"fp16": 2e14}, "copy_bytes_per_s": 1e12},
    "step": {**figures, "out_of_memory": not fits, "device_bytes": need + (400 << 20), "context_bytes": 400 << 20, "device_bytes_from": "nvml",
             "step_seconds": 0.1, "retries": 0},
    "trial": {"survives": fits, **figures},
    "workspaces": WORKSPACES,
    "gradients": {"agree": True, "difference": 1e-7, "parameter": "w", "tolerance": 1e-4},
    "rival": {"predicted_bytes": need, "recommended_batch": 3},
}
if job.get("rival") == "torchinfo":
    sys.exit("no such luck")
print(json.dumps({"result": answers[job["do"]]}))
"""


@pytest.fixture
def validate(tmp_path, monkeypatch):
    """Runs `bsmodel validate MINE --out rows.jsonl ...` against the made-up card; gives the rows."""
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)

    def run(*arguments, capacity=GPU.usable_bytes, name="NVIDIA A100-SXM4-40GB", out="rows.jsonl"):
        card = tmp_path / "card.py"
        card.write_text(f"CAPACITY, MEMORY, NAME, WORKSPACES = {capacity}, {GPU.memory_bytes}, {name!r}, {WORKSPACES}\n{CARD}")
        code = main(["validate", MINE, "--out", str(tmp_path / out), "--python", f"{sys.executable} {card}", *arguments])
        assert code == 0
        return rows.read(tmp_path / out)

    return run


def test_a_step_row_has_prediction_measurement_and_environment(validate):
    hardware, workspaces, step = validate("--batch", "64", "--precision", "fp32")

    assert hardware["kind"] == "hardware" and step["kind"] == "step" and step["status"] == "measured"
    kinds = workspaces["measured"]["kinds"]
    assert len(kinds) >= 25 and all(sizes["wanted_bytes"] > 0 and sizes["probes"] >= 1 for sizes in kinds.values())
    assert all((sizes["taken_bytes"] > sizes["wanted_bytes"]) == (" half " in kind) for kind, sizes in kinds.items())
    assert {"contiguous tf32 winograd filter gradient", "contiguous tf32 narrow-winograd filter gradient"} <= set(kinds)
    assert step["case"] == f"{MINE} a100-40gb b=64 precision=fp32 optimizer=adamw" and step["batch"] == 64
    training = bsmodel.Training(precision="fp32")
    peak = bsmodel.predict(bsmodel.trace(bsmodel.Workload.named(MINE), training, GPU), GPU, 64)
    assert step["predicted"]["reserved_bytes"] == peak.reserved_bytes and step["predicted"]["fits"]
    assert step["measured"]["allocated_bytes"] == 164 << 20
    seen = step["environment"]
    assert seen["gpu"] == "a100-40gb" and seen["in_catalogue"] and seen["driver"] == "580.1" and seen["allocator_settings"] == "" and seen["date"]


def test_the_matrix_goes_on_where_it_stopped(validate, capsys):
    first = validate("--precision", "fp32")
    assert [item["case"].split()[2] for item in first[2:]] == ["share=1/2", "share=1", "share=1/8"]
    assert first[3]["batch"] // 2 == first[2]["batch"] and first[3]["batch"] // 8 == first[4]["batch"]
    capsys.readouterr()

    assert validate("--precision", "fp32") == first
    assert "0 rows added" in capsys.readouterr().out
    assert len(validate("--precision", "fp32", "--checkpointing")) == len(first) + 3


def test_a_card_that_no_row_describes_is_never_another_one(validate):
    *_, step = validate("--batch", "4", "--precision", "fp32", name="NVIDIA Unheard Of")

    assert step["gpu"] == "nvidia-unheard-of-39gb" and step["environment"]["in_catalogue"] is False


def test_the_allocator_settings_of_the_runs_are_those_of_the_prediction(validate, monkeypatch, capsys):
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    *_, step = validate("--batch", "100", "--precision", "fp32")
    plain = validate("--batch", "100", "--precision", "fp32", out="same.jsonl")[-1]
    assert step["environment"]["allocator_settings"] == "expandable_segments:True"
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    assert plain["predicted"] == step["predicted"] != validate("--batch", "100", "--precision", "fp32", out="other.jsonl")[-1]["predicted"]


def test_largest_finds_the_first_failure_at_each_capacity(validate, capsys):
    own, small = validate("--largest", "--precision", "fp32", "--capacity", "1GiB", "--capacity", "2GiB", "--capacity", "80GiB")

    assert [item["capacity_bytes"] for item in (own, small)] == [1 * GiB, 2 * GiB]
    assert own["measured"]["batch"] <= 924 < own["measured"]["first_failure"] <= own["measured"]["batch"] + 5
    limited = of_size(GPU, 1024 + 500)
    tape = bsmodel.trace(bsmodel.Workload.named(MINE), bsmodel.Training(), GPU)
    assert own["predicted"]["batch"] == bsmodel.fit(tape, limited).batch
    assert own["measured"]["survives"] == (own["predicted"]["batch"] <= 924)
    assert f"capacity 80.00 GiB is above the {GPU.usable_bytes / GiB:.2f} GiB of a100-40gb: left out" in capsys.readouterr().err


def test_accumulation_runs_the_plan_and_compares_gradients(validate):
    (found,) = validate("--accumulation", "--precision", "fp32", capacity=800 * GiB)

    assert found["micro_batch"] * found["accumulation"] == found["batch"] and found["accumulation"] >= 2
    assert found["measured"]["gradients"]["agree"] and found["measured"]["survives"]


def test_every_rival_has_a_row_also_the_one_that_fails(validate):
    found = {item["rival"]: item for item in validate("--side-by-side", "--batch", "8", "--precision", "fp32")}

    assert list(found) == ["bsmodel", "guide", "accelerate", "torchinfo", "MemTracker", "torch-kitsune"]
    assert found["torchinfo"]["status"] == "failed" and found["torchinfo"]["reason"] == "exit code 1: no such luck"
    assert found["guide"]["measured"]["recommended_survives"] and found["guide"]["measured"]["idle_bytes"] == GPU.usable_bytes - (103 << 20)


def test_a_row_of_another_architecture_is_refused(validate, tmp_path, capsys):
    validate("--batch", "4", "--precision", "fp32")
    capsys.readouterr()
    python = f"{sys.executable} {tmp_path / 'card.py'}"

    message = refused(capsys, "validate", MINE, "--out", str(tmp_path / "x.jsonl"), "--python", python, "--gpu", "h100-80gb")
    assert message == "bsmodel: h100-80gb has compute capability 9.0, the card here 8.0"
    assert "cannot start 'no-such-python'" in refused(capsys, "validate", MINE, "--out", str(tmp_path / "x.jsonl"), "--python", "no-such-python")
    assert "no such folder" in refused(capsys, "validate", MINE, "--out", str(tmp_path / "absent" / "x.jsonl"), "--python", python)


def test_json_is_all_that_is_on_stdout(validate, capsys):
    validate("--batch", "4", "--precision", "fp32", "--json")

    assert json.loads(capsys.readouterr().out)["written"] == 3
