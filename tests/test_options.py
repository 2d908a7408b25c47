# SPDX-License-Identifier: Apache-2.0
"""No option is silently ignored: whatever is given beside a question changes its answer, or is refused in one line before any work."""

import argparse
import json
from pathlib import Path

import pytest

import bsmodel
from bsmodel.command import main
from bsmodel.command.main import _parser
from bsmodel.gate import Baseline
from tests.models import SGD, attention

ROOT = Path(__file__).parent.parent
DIGITS, TRIAL, SKYPILOT = f"{ROOT}/benchmarks/digits.py:workload", f"{ROOT}/benchmarks/results/digits-trial", f"{ROOT}/tests/data/skypilot"
ROWS = f"{ROOT}/benchmarks/results/errors.jsonl"

# -- each question, and what it refuses beside it ----------------------------------------------------------------------------------------

REFUSED = {
    ("trial", DIGITS, "--lr-range", "1e-6:1", "--batches", "64"): {
        "lr-range is one run at one batch": (
            *("--seeds 3", "--base-lr 1", "--base-batch 1", "--gpu a100-40gb", "--out DIR", "--track tensorboard", "--offline", "--target-loss 1"),
            *("--split .1", "--samples 9", "--warmup 3", "--evaluate-every 3", "--patience 3", "--price a100-40gb=1", "--devices 2", "--context 1GiB"),
        ),
        "--effective-batches says the one batch; leave out --batches": ("--effective-batches 64",),
    },
    ("trial", "--report", TRIAL): {
        "--report says what a trial has found, and runs nothing; leave out --": (
            *("--seeds 3", "--batches 8:16", "--optimizer sgd", "--lr-range 1e-6:1", "--no-upcast", "--frozen 0", "--evaluate-every 10", "--out DIR"),
            *("--gpu auto", "--seq-len 8", "--data x", "--target-loss 1", "--price t4-16gb=1", "--devices 1"),
        ),
    },
    ("trial", DIGITS, "--batches", "16"): {
        "--gpu names none; leave out --": ("--price t4-16gb=1", "--devices 2", "--context 1GiB", "--headroom 1GiB", "--gpu auto --devices 2"),
        "base_batch is given without base_lr": ("--base-batch 8",),
        "evaluate_every is the steps between two validations, and there are no samples": ("--evaluate-every 3",),
        "the price of h100-80gb is given, and it is not asked about": ("--gpu t4-16gb --price h100-80gb=1",),
    },
    ("validate", "--report", ROWS): {
        "--report says what rows hold, and measures nothing; leave out ": (
            *("resnet50", "--out x", "--gpu a100-40gb", "--batch 4", "--capacity 4GiB", "--seq-len 8", "--image-size 8", "--precision fp32"),
            *("--optimizer sgd", "--checkpointing", "--quick", "--minutes 3", "--retry", "--python python"),
        ),
        "leave out --out-dir": ("--out-dir . --html a.html --markdown a.md",),
    },
    ("validate", "--calibrate", ROWS, "--out", "gpu.toml"): {
        "measures nothing; leave out ": ("resnet50", "--batch 4", "--capacity 4GiB", "--seq-len 8", "--precision fp32", "--quick", "--minutes 3", "--retry"),
    },
    ("validate", "--out", "rows.jsonl"): {"capacities are for --largest": ("--capacity 4GiB", "--accumulation --capacity 4GiB")},
    ("validate", "--largest", "--out", "rows.jsonl"): {"--largest finds the batch; leave out --batch": ("--batch 4",)},
    ("gpus", "--schema"): {"leave out --min-memory": ("--min-memory 90GiB",)},
    ("study", "--model", "gpt2"): {
        "--json prints JSON; leave out --csv": ("--json --csv",),
        "parallel fsdp2 is for several devices": ("--parallel fsdp2",),
    },
    ("plan", "gpt2", "--seq-len", "128:256"): {
        "a run is planned of samples of one length, by --seq-len N; leave out --": (
            *("--price a100-40gb=1", "--prices x.csv", "--cloud aws", "--region x", "--spot", "--network aws-p4d", "--target-batch 8", "--samples 9"),
            *("--epochs 3", "--base-lr 1", "--base-batch 8", "--devices 2"),
        ),
        "--target-batch, --samples and --epochs": ("--epochs 3 --target-batch 8 --samples 9",),
    },
    ("plan", "gpt2", "--lengths", "50:100"): {"samples of one length": ("--price a100-40gb=1", "--spot", "--network aws-p4d", "--devices 2")},
    ("plan", "gpt2", "--image-size", "128:256"): {"by --image-size N; leave out --spot": ("--spot",)},
    ("plan", "TAPE", "--gpu", "a100-40gb", "--price", "a100-40gb=2"): {
        "your own price is given for every card, a100-40gb, and goes before offers; leave out --": ("--prices x.csv", "--cloud x", "--region x", "--spot"),
    },
    ("predict", "gpt2", "--batch", "4"): {"leave out --network": ("--network aws-p4d", "--devices 16 --network aws-p4d")},
    ("check", "gpt2", "--gpu", "a100-40gb", "--require-batch", "4"): {"--network is for --against": ("--network aws-p4d",)},
    ("explain", "gpt2", "--batch", "4"): {
        "by --by module; leave out --depth": ("--depth 1", "--by operator --depth 1"),
        "whatever room the card has; leave out --": ("--context 1GiB", "--headroom 1GiB", "--html x.html --headroom 1GiB"),
        "leave out --network": ("--network aws-p4d", "--trace t.json --network aws-p4d", "--devices 16 --network aws-p4d"),
        "counts one recording": ("--by module --gpu a100-40gb --gpu t4-16gb", "--by operator --gpu a100-40gb --gpu t4-16gb"),
    },
}
CASES = [(question, reason, words) for question, reasons in REFUSED.items() for reason, several in reasons.items() for words in several]


@pytest.mark.parametrize(("question", "reason", "words"), CASES, ids=[f"{' '.join(question[:3])[-40:]} {words}" for question, _, words in CASES])
def test_an_option_without_effect_is_refused(question, reason, words, asked):
    code, printed, written, said = asked(*question, *words.split())

    assert (code, printed, written) == (2, "", {}) and reason in said and said.count("\n") == 1


def test_an_option_is_given_though_its_value_is_what_it_would_be(asked):
    """`--seeds 1` and `--devices 1` ask for something, too."""
    for words in ("--seeds 1", "--devices 1", "--split 0"):
        assert "leave out" in asked("trial", "--report", TRIAL, *words.split())[3]


def test_a_second_card_of_a_trial_has_its_own_price(asked):
    pytest.importorskip("sklearn")
    words = ("--batches", "16:32", "--steps", "6", "--target-loss", "9", "--gpu", "t4-16gb", "--gpu", "a100-40gb", "--price", "a100-40gb=7.5", "--no-cache")
    code, printed, _, said = asked("trial", DIGITS, *words, "--json")
    prices = {gpu: [each["usd"] / each["seconds"] * 3600 for each in choice["choices"]] for gpu, choice in json.loads(printed)["elsewhere"].items()}

    assert code == 0, said
    assert prices["a100-40gb"] == pytest.approx([7.5, 7.5]) and prices["t4-16gb"] != pytest.approx([7.5, 7.5])


# -- the law -----------------------------------------------------------------------------------------------------------------------------

# A value of every option that takes one, other than that of the questions below.
VALUES = {
    **{"gpu": "a100-80gb", "context": "2GiB", "headroom": "3GiB", "min_memory": "90GiB", "capacity": "4GiB", "price": "a100-40gb=1.23", "prices": "OFFERS"},
    **{"seq_len": "64", "image_size": "64", "attention": "eager", "input": "3x4", "loss": "mse", "precision": "bf16-mixed", "optimizer": "adamw"},
    **{"gradient_clipping": "0.01", "zero_grad": "zeros", "float8": "tensorwise", "frozen": "embed", "weights": "nf4", "compute_dtype": "bf16"},
    **{"adapter": "lora", "lora_rank": "4", "lora_targets": "attention", "lora_alpha": "3", "lora_dropout": ".1", "adapter_dtype": "weights"},
    **{"prompt_tokens": "3", "accumulation": "2", "devices": "16", "network": "aws-p4d", "parallel": "fsdp2", "tensor": "2", "param_dtype": "bf16"},
    **{"reduce_dtype": "bf16", "wrap": "Linear", "nodes": "2", "preset": "accelerate", "target_batch": "64", "samples": "10000", "epochs": "3"},
    **{"cloud": "aws", "region": "us-east-1", "base_lr": ".3", "base_batch": "7", "lengths": "50:100", "html": "a.html", "emit": "accelerate"},
    **{"save": "a.tape", "batch": "8", "by": "module", "depth": "1", "trace": "a.json", "snapshot": "a.pickle", "memory_timeline": "b.json"},
    **{"require_batch": "9", "against": "BASELINE", "allow": "2%", "save_baseline": "c.json", "checkpointing": "yes", "out": "rows.jsonl", "workers": "2"},
    **{"model": "gpt2", "sources": SKYPILOT, "day": "2026-01-01", "data": "no.txt", "split": ".2", "batches": "8", "effective_batches": "8", "steps": "12"},
    **{"micro_batch": "8", "seeds": "2", "lr_range": "1e-2:2", "warmup": "3", "target_loss": "1", "evaluate_every": "3", "patience": "2"},
    **{"track": "tensorboard", "report": TRIAL, "picture": "a.svg", "calibrate": ROWS, "minutes": "3", "python": "python", "out_dir": ".", "markdown": "a.md"},
}
CARD = ("--gpu", "a100-40gb")
QUESTIONS = {
    "plan": ("plan", "TAPE", *CARD),
    "compare": ("compare", "TAPE", *CARD),
    "predict": ("predict", "TAPE", *CARD, "--batch", "4"),
    "explain": ("explain", "TAPE", *CARD, "--batch", "4"),
    "explain by module": ("explain", "TAPE", *CARD, "--batch", "4", "--by", "module"),
    "explain by operator": ("explain", "TAPE", *CARD, "--batch", "4", "--by", "operator"),
    "explain as JSON": ("explain", "TAPE", *CARD, "--batch", "4", "--by", "module", "--json"),
    "check": ("check", "TAPE", *CARD, "--require-batch", "4"),
    "check against": ("check", "TAPE", *CARD, "--against", "BASELINE"),
    "study": ("study", "--model", "TAPE", *CARD),
    "study of a file": ("study", "STUDY"),
    "gpus": ("gpus",),
    "schema of gpus": ("gpus", "--schema"),
    "prices": ("prices", "--prices", "OFFERS"),
    "prices update": ("prices", "update", "--from", SKYPILOT),
    "report of a trial": ("trial", "--report", TRIAL),
    "range of rates": ("trial", DIGITS, "--lr-range", "1e-3:1", "--batches", "16", "--steps", "10", "--json"),
    "report of rows": ("validate", "--report", ROWS),
}
# What changes no answer: how it is printed or how soon it comes; what is so already; and what by its nature is the same.
SAME = {
    *((question, name) for question in QUESTIONS for name in ("cache", "debug", "workers", "help")),
    *{("explain as JSON", "json"), ("schema of gpus", "json")},
    ("explain", "by"),
    *{("explain by module", "devices"), ("explain by operator", "devices"), ("explain as JSON", "devices")},  # each does the same
    ("check against", "allow"),
    *{("range of rates", name) for name in ("keep_outputs", "zero_grad")},  # a matter of memory
}


def options_of(command):
    """The options of a command, and what each is for."""
    commands = next(action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    return [action for action in commands.choices[command]._actions if action.option_strings]


@pytest.fixture(scope="module")
def files(a100, tmp_path_factory):
    """What the words in capitals stand for."""
    tape = bsmodel.trace(attention(), SGD, a100)
    folder = tmp_path_factory.mktemp("files")
    named = {name: folder / ending for name, ending in (("TAPE", "a.tape"), ("BASELINE", "a.json"), ("STUDY", "a.toml"), ("OFFERS", "a.csv"))}
    tape.save(named["TAPE"])
    Baseline.of(bsmodel.fit(tape, a100), 4).save(named["BASELINE"])
    named["STUDY"].write_text(f'workloads = ["{named["TAPE"]}"]\ngpus = ["a100-40gb"]\n')
    offer = "a100-40gb,{},8,{},{},2026-11-01,{}\n".format
    offers = offer(8.0, "aws", "us-east-1", "false"), offer(4.0, "gcp", "us-west-1", "false"), offer(2.0, "aws", "us-east-1", "true")
    named["OFFERS"].write_text("gpu,usd_per_hour,count,cloud,region,day,spot\n" + "".join(offers))
    return named


@pytest.fixture
def asked(files, tmp_path, monkeypatch, capsys):
    """Asks in an empty folder; gives the exit code, what is printed, what is written there, and what is said on stderr."""

    def ask(*words):
        folder = tmp_path / str(len([*tmp_path.iterdir()]))
        folder.mkdir()
        monkeypatch.chdir(folder)
        monkeypatch.setenv("BSMODEL_DATA_DIR", str(tmp_path))
        try:
            code = main([str(files.get(word, word)) for word in words])
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        return code, printed.out, {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}, printed.err

    return ask


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_option_changes_the_answer_or_is_refused(question, asked):
    words = QUESTIONS[question]
    plain = asked(*words)
    assert plain[0] == 0, plain
    ignored = []
    for option in options_of(words[0]):
        if (question, option.dest) in SAME or (option.option_strings[0] in words and option.dest != "gpu"):
            continue
        given = [option.option_strings[0], *([VALUES[option.dest]] if option.nargs != 0 else [])]
        code, *answer, said = asked(*words, *given)
        if code == 2:
            assert "unrecognized" not in said and "invalid" not in said, said
        elif answer == [*plain[1:3]]:
            ignored.append(" ".join(given))

    assert not ignored, ignored
