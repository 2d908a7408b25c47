# SPDX-License-Identifier: Apache-2.0
"""`bsmodel trial` as it is typed: what it runs and reads, what it prints and writes, and what it refuses in one line."""

import json
import math

import jsonschema
import numpy as np
import pytest

from bsmodel.command import main
from bsmodel.command.documents import schema
from bsmodel.command.training import training
from bsmodel.trials import Rung, Trial, Update
from tests.test_pages import csv_tables
from tests.test_trial_page import specs

pytest.importorskip("sklearn")
DIGITS = "benchmarks/digits.py:workload"
SHORT = ["--effective-batches", "16:64", "--micro-batch", "16", "--steps", "12", "--seeds", "2", "--split", "0.2", "--warmup", "0", "--target-loss", "2.29"]
KEPT = "benchmarks/results/digits-trial"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trial that was run, and what was printed of it."""
    place = tmp_path_factory.mktemp("trial") / "digits"
    assert main(["trial", DIGITS, *SHORT, "--out", str(place)]) == 0
    return place


def asked(capsys, *words):
    """Exit code, stdout and stderr of a trial."""
    code = main(["trial", *words])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_trial_is_run_read_again_and_goes_on(folder, capsys):
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").iterdir()}
    again, read = asked(capsys, DIGITS, *SHORT, "--out", str(folder)), asked(capsys, "--report", str(folder))

    assert again[:2] == read[:2] and read[0] == 0
    assert {path: path.stat().st_mtime_ns for path in (folder / "runs").iterdir()} == before
    assert [(row.rung.batch, row.rung.micro_batch, row.rung.accumulation) for row in Trial.load(folder).rows] == [(16, 16, 1), (32, 16, 2), (64, 16, 4)]
    assert "16 x 4 x 1" in read[1] and "Gradient noise scale" in read[1] and "no CUDA device here" in read[1]


def test_its_json_keeps_to_the_schema(folder, capsys):
    code, printed, _ = asked(capsys, "--report", str(folder), "--json")
    document = json.loads(printed)

    assert code == 0 and [row["rung"]["batch"] for row in document["rows"]] == [16, 32, 64]
    jsonschema.validate(document, json.loads(schema("trial")))


def test_for_other_cards_a_batch_is_recommended_by_prediction(folder, capsys):
    code, printed, _ = asked(capsys, DIGITS, *SHORT, "--out", str(folder), "--gpu", "t4-16gb", "--price", "t4-16gb=0.5", "--json", "--no-cache")
    choice = json.loads(printed)["elsewhere"]["t4-16gb"]

    assert (
        code == 0
        and choice["by"].endswith("predicted for t4-16gb")
        and all(each["usd"] == pytest.approx(each["seconds"] / 3600 * 0.5) for each in choice["choices"])
    )


def test_a_price_on_another_card_has_its_place(folder, capsys, tmp_path, monkeypatch):
    """As plan says it; an instance is paid whole, and one price of several cards is no matter to the others."""
    monkeypatch.setenv("BSMODEL_DATA_DIR", str(tmp_path / "none"))
    heading, mine = "gpu,count,usd_per_hour,spot,cloud,region,instance,day\n", tmp_path / "mine.csv"
    mine.write_text(f"{heading}t4,4,2,false,ours,cellar,four,2026-11-01\nt4,4,1,true,ours,cellar,four,2026-11-01\nt4,4,1.5,true,theirs,hall,four,2026-11-01\n")
    words = [DIGITS, *SHORT, "--out", str(folder), "--gpu", "t4-16gb", "--gpu", "a100-40gb", "--no-cache", "--prices", str(mine)]
    spot = [*words, "--cloud", "ours", "--region", "cellar", "--spot", "--price", "a100-40gb=3"]
    plain, said = asked(capsys, *words)[1], " ".join(asked(capsys, *spot)[1].split())
    elsewhere = json.loads(asked(capsys, *spot, "--json")[1])["elsewhere"]

    assert "Price of t4-16gb: four with 4 cards, ours cellar, 2 USD an hour on 2026-11-01 (mine.csv)." in " ".join(plain.split())
    assert "Price of t4-16gb: four with 4 cards, ours cellar, 1 USD an hour at spot price on 2026-11-01 (mine.csv)." in said
    assert "Price of a100-40gb: yours." in said and "Note: offers are those at spot prices of ours in cellar." in said and "can be taken away" in said
    assert all(each["usd"] == pytest.approx(each["seconds"] / 3600) for each in elsewhere["t4-16gb"]["choices"])
    assert elsewhere["t4-16gb"]["price"]["region"] == "cellar" and elsewhere["a100-40gb"]["price"]["source"] == "yours"


def test_without_an_offer_there_is_no_price_and_a_table_that_is_none_is_refused_before_the_trial(folder, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("BSMODEL_DATA_DIR", str(tmp_path / "none"))
    (tmp_path / "mine.csv").write_text("gpu,count,usd_per_hour,cloud\nt4,4,2,ours\n")
    words = [DIGITS, *SHORT, "--gpu", "a100-40gb", "--no-cache", "--cloud", "ours"]

    assert "No price of a100-40gb: there is no such offer." in asked(capsys, *words, "--out", str(folder), "--prices", str(tmp_path / "mine.csv"))[1]
    code, _, line = asked(capsys, *words, "--out", str(tmp_path / "new"))
    assert code == 2 and "there is no table of offers on demand of ours" in line and not (tmp_path / "new").exists()


def test_a_card_of_which_nothing_can_be_predicted_is_refused_before_the_trial(capsys, tmp_path):
    words = [DIGITS, *SHORT, "--out", str(tmp_path / "new"), "--gpu", "t4-16gb", "--headroom", "14.4GiB", "--no-cache"]
    code, printed, line = asked(capsys, *words)

    assert (code, printed) == (2, "") and line.rstrip().endswith("leave out --gpu t4-16gb, for which no batch can be recommended")
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_said_of_a_trial_that_was_run_is_a_note_and_not_its_end(folder, capsys, tmp_path):
    """Runs may have taken hours, and their folder may be a temporary one."""
    pytest.importorskip("vl_convert")
    code, printed, _ = asked(capsys, DIGITS, *SHORT, "--out", str(folder), "--gpu", "t4-16gb", "--devices", "512", "--no-cache")
    assert code == 0 and "Here: " in printed and "Note: on t4-16gb: " in printed and "for each of 512 devices" in " ".join(printed.split())

    (tmp_path / "none.py").write_text(NO_LOSS)
    words = [f"{tmp_path}/none.py:workload", "--batches", "4:8", "--steps", "2", "--base-lr", "0.1"]
    code, printed, _ = asked(capsys, *words, "--out", str(tmp_path / "out"), "--picture", str(tmp_path / "none.svg"))
    assert code == 0 and "diverged" in printed and "the picture is not written: there is nothing to draw" in " ".join(printed.split())
    read, _, line = asked(capsys, "--report", str(tmp_path / "out"), "--picture", str(tmp_path / "none.svg"))
    assert read == 2 and "there is nothing to draw" in line and not (tmp_path / "none.svg").exists()


NO_LOSS = """
import math, torch, bsmodel
workload = bsmodel.Workload(
    lambda: torch.nn.Linear(2, 1),
    lambda size: torch.zeros(size, 2),
    lambda model, batch: model(batch).mean() * math.nan,
    training=bsmodel.Training(optimizer="sgd"),
)
"""


def test_updates_are_those_that_were_made(capsys):
    """A run that is at the target makes no more of them."""
    rows = [line.split() for line in asked(capsys, "--report", KEPT)[1].splitlines()]
    made = {row.rung.batch: row.steps_to_target.mean for row in Trial.load(KEPT).rows}

    assert {int(row[0]): float(row[7]) for row in rows if row[0:1] != ["batch"] and row[2:3] == ["x"]} == pytest.approx(made, rel=1e-3)
    assert all(row.rung.steps == 1500 for row in Trial.load(KEPT).rows)


def test_each_run_that_is_over_has_a_line(capsys):
    """Also one that made fewer steps than it might have; one that breaks off has none."""
    first, second = Rung(8, 8, 1, 1, 0.1, 50), Rung(16, 16, 1, 1, 0.1, 50)
    told = [(first, 0), (first, 0), (first, 1), (second, 0), (second, 0)]
    with training() as watch:
        for step, (rung, seed) in enumerate(told, start=1):
            watch(rung, seed, Update(step, step * rung.batch, 0.5, 1.0, 0.1))
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["batch 8, seed 0", "batch 8, seed 1", "batch 16, seed 0"]

    with pytest.raises(KeyboardInterrupt):
        _broken_off(first)
    assert capsys.readouterr().err == ""


def _broken_off(rung):
    with training() as watch:
        watch(rung, 0, Update(1, 8, 0.5, 1.0, 0.1))
        raise KeyboardInterrupt


def test_a_page_and_a_picture_are_written(tmp_path, capsys):
    pytest.importorskip("vl_convert")
    page, picture = tmp_path / "trial.html", tmp_path / "trial.svg"

    assert asked(capsys, "--report", KEPT, "--html", str(page), "--picture", str(picture))[0] == 0
    assert "digits" in page.read_text() and picture.read_text().startswith("<svg")


def test_a_learning_rate_is_looked_for(capsys):
    code, printed, _ = asked(capsys, DIGITS, "--lr-range", "1e-3:100", "--batches", "64", "--steps", "40", "--json")
    document = json.loads(printed)

    assert code == 0 and document["curve"]["rates"][0] == pytest.approx(1e-3)
    assert document["steepest"] < document["diverged_at"] and document["tenth_of_divergence"] == pytest.approx(document["diverged_at"] / 10)
    jsonschema.validate(document, json.loads(schema("trial")))
    assert "Steepest fall" in asked(capsys, DIGITS, "--lr-range", "1e-3:100", "--batches", "64", "--steps", "40")[1]


def test_the_learning_rates_are_a_page_and_a_picture(tmp_path, capsys):
    pytest.importorskip("vl_convert")
    page, picture = tmp_path / "rates.html", tmp_path / "rates.svg"
    words = (DIGITS, "--lr-range", "1e-3:100", "--batches", "64", "--steps", "40", "--html", str(page), "--picture", str(picture))
    code, printed, _ = asked(capsys, *words, "--json")
    found, text = json.loads(printed), page.read_text()
    curve = found["curve"]
    chart = specs(text)["rates"]
    steps = [(row["rate"], row["loss"], row["smoothed"]) for row in chart["datasets"]["rows"]]

    assert code == 0 and np.ravel(steps) == pytest.approx(np.ravel(list(zip(curve["rates"], curve["losses"], curve["smoothed"], strict=True))), rel=1e-5)
    read = {f"steepest fall {found['steepest']:.2g}", f"a tenth of divergence {found['tenth_of_divergence']:.2g}", f"diverged {found['diverged_at']:.2g}"}
    assert {row["label"] for layer in chart["layer"] for row in layer.get("data", {}).get("values", ()) if "rate" in row} == read
    assert len(csv_tables(text)["rates"]) == 1 + len(steps) and "Steepest fall: " in text and "sgd, fp32" in text
    assert all(label in picture.read_text() for label in read)


def test_a_text_is_cut_into_samples(tmp_path, capsys):
    """By a token for each byte where the model's folder has no tokenizer."""
    pytest.importorskip("transformers")
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 256, "bos_token_id": 0, "eos_token_id": 0}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **sizes}))
    words = [str(tmp_path), "--seq-len", "32", "--data", "tests/data/looking_glass.txt", "--batches", "4:8", "--steps", "20", "--base-lr", "1e-2"]
    code, printed, _ = asked(capsys, *words, "--precision", "fp32", "--json")
    document = json.loads(printed)

    assert code == 0 and document["question"]["data"].startswith("looking_glass.txt, a token for each byte, ")
    assert all(
        row["status"] == "finished" and 3 < row["final_loss"]["mean"] < math.log(256) for row in document["rows"]
    )  # from weights as the library has them


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "give a model to try, or --report DIR"),
        ([DIGITS, "--report", KEPT], "leave out the model"),
        (["--report", "nowhere"], "holds no trial"),
        (["--report", KEPT, "--gpu", "t4-16gb"], "does not hold its model"),
        ([DIGITS], "give the smallest and the largest"),
        ([DIGITS, "--batches", "64:16"], "expected the smaller one first"),
        ([DIGITS, "--batches", "16", "--effective-batches", "16"], "are both given"),
        ([DIGITS, "--batches", "16", "--steps", "10", "--samples", "100"], "steps"),
        ([DIGITS, "--batches", "16", "--track", "tensorbord"], "unknown tracker 'tensorbord'; nearest: tensorboard"),
        ([DIGITS, "--batches", "16", "--track", "comet", "--offline"], "tracker comet sends to wherever it is set up for"),
        ([DIGITS, "--batches", "16", "--patience", "2"], "no samples to validate with"),
        ([DIGITS, "--batches", "16", "--data", "no.txt"], "cannot read data 'no.txt'"),
        ([DIGITS, "--batches", "16", "--optimizer", "adamw"], "no learning rate is known for digits with adamw"),
        ([DIGITS, "--batches", "16", "--gpu", "a100-40g"], "unknown GPU 'a100-40g'; nearest: a100-40gb"),
        ([DIGITS, "--batches", "16", "--html", "nowhere/page.html"], "cannot write the page 'nowhere/page.html'"),
        ([DIGITS, "--lr-range", "1e-3:1", "--batches", "16:32"], "--lr-range is at one batch"),
    ],
)
def test_what_cannot_be_tried_is_refused_in_one_line(words, reason, capsys):
    code, printed, said = asked(capsys, *words)

    assert (code, printed) == (2, "") and reason in said and said.count("\n") == 1


def test_another_question_of_a_folder_is_refused(folder, capsys):
    code, _, said = asked(capsys, DIGITS, *SHORT, "--base-lr", "0.2", "--out", str(folder))

    assert code == 2 and "holds another trial" in said and "learning_rate" in said
