# SPDX-License-Identifier: Apache-2.0
"""Numbers that callers give: whole or finite, in range, or one line that names them."""

import dataclasses
import json
import math
import warnings
from fractions import Fraction
from typing import get_args

import numpy as np
import pytest

import bsmodel
from bsmodel import InvalidInputError
from bsmodel.command import documents, main
from bsmodel.studies import Row, Study
from bsmodel.units import finite, whole

NO_NUMBERS = [math.nan, math.inf, -math.inf, True, np.True_, "8", None, [8], np.arange(100), 10**5000]


@pytest.mark.parametrize("value", [8, 8.0, np.int64(8), np.uint8(8), np.float32(8), np.float64(8), Fraction(8)], ids=lambda value: type(value).__name__)
def test_a_whole_number_is_an_int_whatever_its_type(value):
    assert type(whole("batch", value)) is int
    assert whole("batch", value) == 8
    assert type(finite("price", value)) is float
    assert finite("price", value) == 8.0


@pytest.mark.parametrize("value", [*NO_NUMBERS, 0, -1, 8.5, 10**26, 1e26], ids=lambda value: type(value).__name__)
def test_what_is_no_count_is_one_line_that_names_it(value):
    with pytest.raises(InvalidInputError, match=r"^batch is [^\n]{1,80}; expected a whole number (of at least 1|from 1 to 9007199254740992)$"):
        whole("batch", value)


@pytest.mark.parametrize("value", [*NO_NUMBERS, 0, -1.5], ids=lambda value: type(value).__name__)
def test_what_is_no_finite_number_in_range_is_one_line_that_names_it(value):
    with pytest.raises(InvalidInputError, match=r"^price is [^\n]{1,80}; expected a finite number above 0$"):
        finite("price", value, above=0)


def test_the_ends_of_a_range_belong_to_it_and_are_named():
    assert [whole("shards", value, least=0, most=4) for value in (0, 4)] == [0, 4]
    assert finite("share", 0.0, least=0) == 0.0
    with pytest.raises(InvalidInputError, match="shards is 5; expected a whole number from 0 to 4"):
        whole("shards", 5, least=0, most=4)


# -- public functions --------------------------------------------------------------------------------------------------------------------

NO_COUNTS = [math.nan, math.inf, -math.inf, 0, -1, 8.5, 10**26, True, "8"]
NO_AMOUNTS = [math.nan, math.inf, -math.inf, 0, -1.5, True, "8"]
GPU = bsmodel.Gpu.named("a100-40gb")
COUNTED = {
    "Gpu.model_copy memory_bytes": lambda tape, value: GPU.model_copy(update={"memory_bytes": value}),
    "Goal target_batch": lambda tape, value: bsmodel.Goal(target_batch=value),
    "Goal samples": lambda tape, value: bsmodel.Goal(samples=value),
    "Goal base_batch": lambda tape, value: bsmodel.Goal(base_lr=0.1, base_batch=value),
    "study devices": lambda tape, value: bsmodel.study([tape], gpus=[GPU], devices=[value]),
    "by_module": bsmodel.by_module,
    "by_operator": bsmodel.by_operator,
    "footprint": lambda tape, value: bsmodel.footprint(tape)(value),
    "footprint binding": lambda tape, value: bsmodel.footprint(tape).binding(value),
    "breakdown": bsmodel.breakdown,
    "predict": lambda tape, value: bsmodel.predict(tape, GPU, batch=value),
}
MEASURED = {
    "Goal epochs": lambda tape, value: bsmodel.Goal(samples=1000, epochs=value),
    "Goal base_lr": lambda tape, value: bsmodel.Goal(base_lr=value),
    "Price": lambda tape, value: bsmodel.Goal(prices=(("a100-40gb", bsmodel.Price(value, "mine")),)),
    "Gpu.model_copy bandwidth": lambda tape, value: GPU.model_copy(update={"bandwidth_bytes_per_s": value}),
}


@pytest.mark.parametrize("name", COUNTED)
def test_counts_are_read_alike_everywhere(name, tape):
    for value in NO_COUNTS:
        with pytest.raises(InvalidInputError) as refusal:
            COUNTED[name](tape, value)
        assert "\n" not in str(refusal.value)
    if not name.startswith("Gpu"):
        assert len({repr(COUNTED[name](tape, value)) for value in (8, 8.0, np.int64(8), np.float32(8))}) == 1
    size = GPU.memory_bytes
    assert {GPU.model_copy(update={"memory_bytes": value}) for value in (size, float(size), np.int64(size))} == {GPU}


@pytest.mark.parametrize("name", MEASURED)
def test_amounts_are_read_alike_everywhere(name, tape):
    for value in NO_AMOUNTS:
        with pytest.raises(InvalidInputError) as refusal:
            MEASURED[name](tape, value)
        assert "\n" not in str(refusal.value)
    assert len({repr(MEASURED[name](tape, value)) for value in (2.0, np.float64(2), np.float32(2), np.int64(2))}) == 1


def test_cards_are_asked_about_once_and_prices_are_for_cards_that_are(tape):
    with pytest.raises(InvalidInputError, match="GPU 'a100-40gb' is asked about twice; name it once"):
        bsmodel.study([tape], gpus=["a100-40gb", GPU])
    with pytest.raises(InvalidInputError, match="the price of t4-16gb is given, and it is not asked about; the cards are a100-40gb"):
        bsmodel.study([tape], gpus=[GPU], goals=[bsmodel.Goal(prices=(("t4-16gb", bsmodel.Price(1.0, "mine")),))])


# -- the command line --------------------------------------------------------------------------------------------------------------------

COUNTING = ("--batch", "--target-batch", "--devices", "--samples", "--base-batch", "--accumulation", "--lora-rank", "--seq-len", "--image-size", "--depth")
MEASURING = ("--epochs", "--base-lr", "--gradient-clipping")
AT = {"--batch": "predict", "--depth": "explain"}


def refused(capsys, *arguments):
    """The one line with which the command refuses."""
    try:
        code = main([*map(str, arguments)])
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr()
    assert (code, printed.out, printed.err.count("\n")) == (2, "", 1)
    return printed.err


@pytest.mark.parametrize("flag", [*COUNTING, *MEASURING])
def test_a_flag_with_a_number_that_is_none_is_one_line(flag, capsys):
    wrong = ["nan", "inf", "-inf", "0", "-1", "1" + "0" * 26, "9" * 5000, "eight", "True", ""] + (["8.5"] if flag in COUNTING else [])
    for value in wrong if flag in COUNTING else [word for word in wrong if not word.startswith(("9", "10"))]:
        line = refused(capsys, AT.get(flag, "plan"), "gpt2", f"{flag}={value}")
        assert flag in line and "8 --help" not in line


def test_prices_and_cards_at_the_command_line(capsys):
    ask = ("plan", "gpt2", "--gpu", "a100-40gb")
    for value in ("a100-40gb=nan", "a100-40gb=inf", "a100-40gb=0", "a100-40gb=-1", "a100-40gb", "a100-40gb=", "=1", "a100-40gb=1=2"):
        assert "price" in refused(capsys, *ask, "--price", value) or "unknown GPU" in refused(capsys, *ask, "--price", value)
    assert "the price of t4-16gb is given, and it is not asked about; the cards are a100-40gb" in refused(capsys, *ask, "--price", "t4-16gb=1")
    assert "two prices of a100-40gb are given, 1 and 2" in refused(capsys, *ask, "--price", "a100-40gb=1", "--price", "a100-40gb=2")
    assert "GPU 'a100-40gb' is asked about twice" in refused(capsys, *ask, "--gpu", "A100-40GB")


def test_a_target_below_the_devices_is_one_line(tape, tmp_path, capsys):
    tape.save(tmp_path / "tape")
    line = refused(capsys, "plan", tmp_path / "tape", "--gpu", "a100-40gb", "--target-batch", "4", "--devices", "8")

    assert "4" in line and "8" in line


def test_whole_floats_are_counts_at_the_command_line(tape, tmp_path, capsys):
    tape.save(tmp_path / "tape")
    answers = []
    for value in ("8", "8.0", "8e0"):
        main(["predict", str(tmp_path / "tape"), "--gpu", "a100-40gb", "--batch", value])
        answers.append(capsys.readouterr().out)

    assert answers[0] == answers[1] == answers[2] != ""


FIELDS = {
    "devices = [0]": "devices.0",
    "devices = []": "devices",
    "devices = [true]": "devices.0",
    "devices = [1.5]": "devices.0",
    "devices = 'many'": "devices",
    "target_batch = [-4]": "target_batch.0",
    "target_batch = [100000000000000000]": "target_batch.0",
    "samples = -1": "samples",
    "samples = 0": "samples",
    "samples = nan": "samples",
    "samples = inf": "samples",
    "epochs = nan": "epochs",
    "epochs = inf": "epochs",
    "epochs = 0": "epochs",
    "epochs = -2.5": "epochs",
    "epochs = 'two'": "epochs",
    "prices = { a100-40gb = nan }": "prices.a100-40gb",
    "prices = { a100-40gb = 0 }": "prices.a100-40gb",
    "prices = { t4-16gb = 1 }": "price of t4-16gb",
    "trainings = [{ accumulation = 0 }]": "accumulation",
    "trainings = [{ gradient_clipping = nan }]": "gradient_clipping",
    "trainings = [{ gradient_clipping = inf }]": "gradient_clipping",
    "trainings = [{ lora_rank = 1.5 }]": "lora_rank",
    "gpus = ['a100-40gb', 'a100-40gb']": "asked about twice",
}


@pytest.mark.parametrize("line", FIELDS)
def test_a_study_file_with_a_number_that_is_none_is_one_line(line, tmp_path, capsys):
    file = tmp_path / "study.toml"
    file.write_text("workloads = ['gpt2']\n" + line + ("\n" if line.startswith("gpus") else "\ngpus = ['a100-40gb']\n"))

    assert FIELDS[line] in refused(capsys, "study", file)


# -- documents ---------------------------------------------------------------------------------------------------------------------------


def test_no_document_holds_what_json_has_no_number_for():
    def strict(text):
        return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} in a document"))

    empty = Row("a", {"made_up": math.nan, "other": math.inf}, "b", 1, None, "refused", "c", learning_rate=math.inf)
    assert strict(Study((empty,)).to_json())["rows"][0]["learning_rate"] is None
    for kind in (kind for one in documents.DOCUMENTS.values() for kind in get_args(one) or (one,)):
        fields = {field.name: math.nan for field in dataclasses.fields(kind) if field.name in ("batch",)}
        document = object.__new__(kind)
        for field in dataclasses.fields(kind):
            of_text, of_names = field.name in ("command", "workload"), field.name == "longest"
            object.__setattr__(document, field.name, fields.get(field.name, "x" if of_text else {} if of_names else ()))
        if "rows" in vars(document) and kind not in (documents.LengthsDocument, documents.TrialDocument):
            object.__setattr__(document, "rows", (empty,))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pydantic, that these fields hold something else
            strict(documents.text(document))
