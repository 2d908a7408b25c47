# SPDX-License-Identifier: Apache-2.0
"""Advice: recipes from mild to drastic, of which those that are said to fit are recorded and do."""

import json

import pytest

import bsmodel
from bsmodel import Parallel
from bsmodel.command import main
from bsmodel.studies import Goal
from bsmodel.studies.advise import _tried
from bsmodel.workloads import Source
from tests.test_adapters import LLAMA

pytest.importorskip("peft")
pytest.importorskip("transformers")
pytest.importorskip("bitsandbytes")

WIDE = {**LLAMA, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 8, "vocab_size": 32000, "architectures": ["LlamaForCausalLM"]}


def asked(capsys, *arguments):
    code = main(["advise", *arguments, "--json", "--no-cache"])
    return code, json.loads(capsys.readouterr().out)["recipes"]


def test_the_mildest_recipe_that_fits_is_named_and_does(config, capsys):
    """Of a model with 0.5 B parameters: 8 GB hold its states, but not what 2,048 tokens save on the way."""
    folder = config(WIDE)
    code, recipes = asked(capsys, folder, "--seq-len", "2048", "--gpu", "rtx-3070-8gb", "--target-batch", "4")
    assert code == 0
    assert [each["recipe"] for each in recipes[:3]] == ["as asked", "--checkpointing", "--checkpointing --optimizer adamw-8bit"]
    mildest = [each for each in recipes if each["mildest"]]
    assert len(mildest) == 1 and mildest[0]["row"]["status"] == "plan"
    before = recipes[: recipes.index(mildest[0])]
    assert before and all(each["row"]["status"] == "does not fit" for each in before)

    change = mildest[0]["change"]
    gpu = bsmodel.Gpu.named("rtx-3070-8gb")
    workload = bsmodel.Workload.named(folder, seq_len=2048)
    tape = bsmodel.trace(workload, bsmodel.Training(**{**dict(workload.training), **change}), gpu)
    assert bsmodel.fit(tape, gpu).batch == mildest[0]["row"]["largest_batch"] > 0


def test_where_nothing_fits_samples_are_shorter(config, capsys):
    code, recipes = asked(capsys, config({**WIDE, "vocab_size": 128000}), "--seq-len", "2048", "--gpu", "rtx-3070-8gb", "--headroom", "3GiB")
    mildest = next(each for each in recipes if each["mildest"])
    assert code == 0 and mildest["change"]["seq_len"] < 2048 and mildest["change"]["weights"] == "nf4"


def test_what_is_asked_for_is_kept_and_a_recording_has_no_other_recipe(config, capsys, tmp_path):
    folder = config({**LLAMA, "architectures": ["LlamaForCausalLM"]})
    _, recipes = asked(capsys, folder, "--seq-len", "64", "--gpu", "rtx-3070-8gb", "--optimizer", "sgd", "--checkpointing")
    assert all(each["change"].get("optimizer") is None and "checkpointing" not in each["change"] for each in recipes)
    assert recipes[0]["mildest"] and recipes[0]["recipe"] == "as asked"

    bsmodel.trace(bsmodel.Workload.named(folder, seq_len=64)).save(tmp_path / "tape")
    assert main(["advise", str(tmp_path / "tape")]) == 2
    assert "holds recordings of one recipe" in capsys.readouterr().err


def test_several_cards_share_the_model_before_anything_else_is_changed(config, capsys):
    """Of 0.5 B parameters in float32 each of four cards of 8 GB holds a quarter, which leaves room for what one has not."""
    code, recipes = asked(capsys, config(WIDE), "--seq-len", "512", "--gpu", "rtx-3070-8gb", "--devices", "4")
    mildest = next(each for each in recipes if each["mildest"])
    assert code == 0 and recipes[0]["row"]["status"] == "does not fit"
    assert mildest["recipe"] == "--parallel fsdp2 --devices 4" and mildest["change"]["parallel"]["kind"] == "fsdp2"
    assert [each["recipe"] for each in recipes if "nf4" in each["recipe"]] == ["--lora-rank 16 --checkpointing --weights nf4 --double-quant"]


def test_a_recipe_that_does_not_go_with_what_is_asked_is_a_row_that_says_why():
    """Packed weights are not sharded, and nothing is recorded to find that out."""
    gpu, asked = bsmodel.Gpu.named("rtx-3070-8gb"), {"parallel": Parallel(kind="fsdp2", devices=8)}
    ((made,), recorded) = _tried(Source.of("resnet50"), asked, {"lora_rank": 16, "weights": "nf4"}, [gpu], (8, Goal()), lambda *_: pytest.fail("recorded"))
    assert made.row.status == "refused" and "'nf4' are not sharded" in made.row.verdict and not recorded
