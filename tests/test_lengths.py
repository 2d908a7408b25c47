# SPDX-License-Identifier: Apache-2.0
"""The second axis: a few recordings tell every length, to the byte; what is no polynomial in the length is refused, or answered as far as it is one."""

import json
from dataclasses import replace

import numpy as np
import pytest

import bsmodel
from bsmodel import Training
from bsmodel.command import main
from bsmodel.command.lengths import batch_cells
from bsmodel.memory import longest
from bsmodel.recording.checks import same_memory
from bsmodel.studies import by_length, padded_to_most
from bsmodel.studies.padded import longest_of
from bsmodel.tape import Lengths, load_all, load_lengths, piece_from, save_lengths
from bsmodel.timing import step_time
from tests.models import of_size
from tests.test_adapters import GPT2, LLAMA, MOE
from tests.test_configs import BERT, built
from tests.test_refusals import line_of

pytest.importorskip("transformers")

MODELS = {
    "llama": ({**LLAMA, "architectures": ["LlamaForCausalLM"]}, Training(precision="bf16-mixed")),
    "llama checkpointed": ({**LLAMA, "architectures": ["LlamaForCausalLM"]}, Training(precision="bf16", checkpointing=True)),
    "llama eager": ({**LLAMA, "architectures": ["LlamaForCausalLM"], "attn_implementation": "eager"}, Training(precision="fp32")),
    "gpt2": ({**GPT2, "architectures": ["GPT2LMHeadModel"]}, Training(precision="fp32", optimizer="sgd")),
    "experts": ({**MOE, "architectures": ["Qwen3MoeForCausalLM"]}, Training(precision="bf16")),
    "bert": ({**BERT, "max_position_embeddings": 1024, "architectures": ["BertForMaskedLM"]}, Training(precision="bf16-mixed")),
}


@pytest.fixture(scope="module")
def workload(tmp_path_factory):
    """A configuration at any length, as a function of the length."""

    def of(fields):
        file = tmp_path_factory.mktemp("model") / "config.json"
        file.write_text(json.dumps(fields))
        return lambda length: built(str(file), seq_len=length)[0]

    return of


def same(told, direct):
    """Whether two tapes are of the same memory and the same work, at their worst, too."""
    parts = ("fixed", "per_sample", "per_pair")
    work = all(np.array_equal(getattr(told.operations, part), getattr(direct.operations, part)) for part in parts)
    worst = (told.worst is None and direct.worst is None) or same(told.worst, direct.worst)
    return work and worst and same_memory(told, direct) and told.tokens_per_sample == direct.tokens_per_sample


@pytest.mark.parametrize("name", MODELS)
def test_every_length_is_what_a_recording_of_it_is(name, workload, a100):
    fields, training = MODELS[name]
    lengths = bsmodel.trace_lengths(workload(fields), training, a100, 128, 1024)
    for length in (128, 384, 640, 896):
        told, direct = lengths.at(length), bsmodel.trace(workload(fields)(length), training, a100)
        assert same(told, direct) and told.remarks == direct.remarks
        assert bsmodel.predict(told, a100, 3) == bsmodel.predict(direct, a100, 3)


@pytest.mark.parametrize("name", ["bert", "experts"])
def test_one_run_gives_what_runs_for_each_length_give(name, workload, a100, monkeypatch):
    fields, training = MODELS[name]
    at_once = bsmodel.trace_lengths(workload(fields), training, a100, 128, 1024)
    monkeypatch.setattr("bsmodel.recording.lengths._together", lambda *asked: None)
    apart = bsmodel.trace_lengths(workload(fields), training, a100, 128, 1024)
    assert at_once.pieces[0].lengths == apart.pieces[0].lengths and at_once.most == apart.most == 1024
    assert all(same(*pair) for pair in zip(at_once.pieces[0].tapes, apart.pieces[0].tapes, strict=True))


def test_where_a_window_ends_another_piece_begins(workload, a100):
    """Below 1,024 tokens the attention of Mistral needs no mask, from there on one of a row for every token."""
    fields = {**LLAMA, "model_type": "mistral", "sliding_window": 1024, "max_position_embeddings": 1 << 16, "architectures": ["MistralForCausalLM"]}
    lengths = bsmodel.trace_lengths(workload(fields), Training(precision="bf16"), a100, 128, 4096)
    assert [(piece.lengths[0], piece.most) for piece in lengths.pieces] == [(128, 896), (1024, 4096)] and not lengths.ends
    assert "takes another path" in lengths.pieces[0].ends
    for length in (896, 1024, 1920):
        assert same(lengths.at(length), bsmodel.trace(workload(fields)(length), Training(precision="bf16"), a100))


@pytest.fixture(scope="module")
def lengths(workload, a100):
    fields, training = MODELS["llama checkpointed"]
    return bsmodel.trace_lengths(workload({**fields, "max_position_embeddings": 1 << 20}), training, a100, 256, 1 << 17)


def test_the_longest_context_and_the_largest_batch_are_inverse(lengths, a100):
    for batch in (1, 3, 17):
        tokens = longest(lengths, a100, batch)
        assert tokens in lengths.known and bsmodel.fit(lengths.at(tokens), a100).batch >= batch
        assert tokens == lengths.most or bsmodel.fit(lengths.at(tokens + 128), a100).batch < batch
    assert longest(lengths, a100, 1 << 19) == 0
    assert line_of(longest, lengths, a100, 0) == "batch is 0; expected a whole number of at least 1"


def test_each_card_has_the_limit_of_its_own_recordings(lengths, a100):
    """Two cards of which one has recordings up to 512 tokens only: what it holds may be longer, what the other holds is the longest."""
    short = Lengths((replace(lengths.pieces[0], most=512),))
    gpus = [a100, of_size(a100, 8000).model_copy(update={"id": "small"})]
    made = by_length([short, lengths], gpus, [256])
    assert made.limits == {a100.id: 512, "small": lengths.most} and made.limit == 512 < made.longest["small"] < lengths.most
    assert [cells[-2:] for cells in batch_cells(made)[1][-1:]] == [["512 or more", f"{made.longest['small']:,}"]]


def test_what_is_padded_is_counted_as_it_is_timed(lengths, a100):
    """Samples of 130 tokens are padded to 256: about half of them is text, in the share as in the speed."""
    (row,) = padded_to_most([lengths], [a100], 130, 130).rows
    assert row.padded_len == 256 and row.useful == 130 / 256
    speed = step_time(lengths.at(256), a100, row.likely_batch).samples_per_s * 256
    assert row.useful_tokens_per_s == pytest.approx(row.useful * speed)


def test_what_was_not_recorded_is_refused(lengths, workload, a100):
    assert line_of(lengths.at, 1000) == "seq-len is 1000; expected a multiple of 128, such as 1024"
    assert "seq-len is 262144; expected a whole number from 256 to 131072" in line_of(lengths.at, 1 << 18)
    assert "seq-len is 128; expected a whole number from 256 to 131072" in line_of(lengths.at, 128)
    of = workload(MODELS["gpt2"][0])
    assert line_of(bsmodel.trace_lengths, of, None, a100, 200) == "shortest is 200; expected a multiple of 128, such as 256"
    assert line_of(bsmodel.trace_lengths, of, None, a100, 512, 256) == "lengths go from 512 to 256; expected the shorter first"


def test_a_size_that_is_no_polynomial_ends_its_piece(lengths):
    """From 1,280 tokens on something takes a byte more for every token beyond: lengths below are answered, and why no others is said."""

    def recorded(length):
        tape = lengths.at(length)
        return replace(tape, fixed_bytes=tape.fixed_bytes + max(0, length - 1152))

    piece = piece_from(recorded, 256, 4096, 128)
    assert piece.most == 1152 and "no polynomial of degree 2; ask for one at a time" in piece.ends

    def dearer(length):
        tape = lengths.at(length)
        return replace(tape, operations=replace(tape.operations, fixed=tape.operations.fixed + max(0, length - 1152)))

    piece = piece_from(dearer, 256, 4096, 128)
    assert piece.most == 1152 and "computes or sends is no polynomial in the length" in piece.ends
    odd = piece_from(lambda length: replace(lengths.at(length), fixed_bytes=lengths.at(length).fixed_bytes + length % 3), 256, 4096, 128)
    assert odd.lengths == (256,) and odd.most == 256 and odd.ends


def test_recordings_of_several_lengths_are_a_file(lengths, a100, tmp_path, capsys):
    file = str(tmp_path / "llama.json.gz")
    save_lengths([lengths], file)
    (read,) = load_lengths(file)
    assert read.most == lengths.most and all(same(*pair) for pair in zip(read.pieces[0].tapes, lengths.pieces[0].tapes, strict=True))
    assert "holds recordings of several lengths; say which with seq_len" in line_of(load_all, file)

    assert main(["plan", file, "--seq-len", "256:1024:256", "--gpu", "a100-40gb", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["seq_len"] for row in rows] == [256, 512, 768, 1024]
    assert main(["plan", file, "--seq-len", "768", "--gpu", "a100-40gb", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gpus"][0]["largest_batch"] == rows[2]["largest_batch"]
    assert main(["plan", file, "--seq-len", "1000"]) == 2
    assert "seq-len is 1000; expected a multiple of 128, such as 1024" in capsys.readouterr().err


def test_a_table_by_length_says_where_positions_and_the_formula_end(config, capsys):
    folder = config({**GPT2, "architectures": ["GPT2LMHeadModel"]})
    code = main(["plan", folder, "--seq-len", "256:4096", "--gpu", "rtx-3070-8gb", "--json", "--no-cache"])
    answer = json.loads(capsys.readouterr().out)
    assert code == 0 and answer["limit"] == 1024 and "samples longer than 1,024 tokens are not answered for: the model has 1,024 positions" in answer["notes"]
    assert [row["seq_len"] for row in answer["rows"]] == [256, 512, 1024] and answer["longest"] == {"rtx-3070-8gb": 1024}
    batches = [row["largest_batch"] for row in answer["rows"]]
    assert batches == sorted(batches, reverse=True) and batches[-1] > 0

    assert main(["plan", folder, "--seq-len", "1000:2048", "--gpu", "rtx-3070-8gb"]) == 2
    assert "seq-len begins at 1000; expected a multiple of 128, such as 1024" in capsys.readouterr().err
    assert main(["plan", folder, "--seq-len", "256:1024", "--target-batch", "64"]) == 2
    assert "samples of one length, by --seq-len N; leave out --target-batch" in capsys.readouterr().err


def test_a_table_by_side_of_images_is_of_recordings_at_each(config, capsys, tmp_path):
    """Convolutions have other kernels at other sizes, so nothing is told between two sides."""
    fields = {"model_type": "resnet", "embedding_size": 32, "hidden_sizes": [32, 64, 128, 256], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    folder, file = config({**fields, "architectures": ["ResNetForImageClassification"]}), str(tmp_path / "resnet.json.gz")
    command = ["--gpu", "rtx-3070-8gb", "--json"]
    assert main(["plan", folder, "--image-size", "64:192:64", "--no-cache", "--save", file, *command]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["option"] == "image_size" and answer["longest"] == {"rtx-3070-8gb": 192}
    rows = {row["image_size"]: row for row in answer["rows"]}
    assert [*rows] == [64, 128, 192] and all(row["samples_per_s"] and row["tokens_per_s"] is None for row in rows.values())
    assert main(["plan", folder, "--image-size", "128", "--no-cache", *command]) == 0
    assert json.loads(capsys.readouterr().out)["gpus"][0]["largest_batch"] == rows[128]["largest_batch"]

    assert main(["plan", file, "--image-size", "100", *command]) == 2
    assert "image-size is 100; expected one that was recorded, such as 128" in capsys.readouterr().err
    assert main(["plan", file, "--seq-len", "128:256"]) == 2
    assert "holds no recordings by seq-len; name the model to ask about several" in capsys.readouterr().err
    assert main(["plan", folder, "--seq-len", "128:256", "--image-size", "64:128"]) == 2
    assert "--seq-len and --image-size both give a range; give one" in capsys.readouterr().err


def test_real_lengths_are_padded_to_the_longest_of_a_batch(config, capsys, tmp_path):
    """Half of the samples have 256 tokens, half 512: of one sample the longest has 384 on average, of very many 512."""
    ordered = np.array([256] * 50 + [512] * 50)
    assert [longest_of(ordered, batch) for batch in (1, 2, 64)] == pytest.approx([384, 448, 512])
    folder, file = config({**GPT2, "architectures": ["GPT2LMHeadModel"]}), tmp_path / "lengths.txt"
    file.write_text("\n".join(map(str, ordered)))
    command = ["plan", folder, "--gpu", "rtx-3070-8gb", "--no-cache", "--json"]
    assert main([*command, "--lengths", str(file)]) == 0
    answer = json.loads(capsys.readouterr().out)
    (row,) = answer["gpus"]
    assert main([*command, "--seq-len", "512"]) == 0
    assert row["largest_batch"] == json.loads(capsys.readouterr().out)["gpus"][0]["largest_batch"] <= row["likely_batch"]
    assert row["padded_len"] == 512 and row["useful"] == pytest.approx(384 / 512, rel=0.01) and answer["mean_len"] == 384

    assert main([*command, "--lengths", "384:512"]) == 0  # of which no more is known: padded to the longest
    told = json.loads(capsys.readouterr().out)
    assert told["gpus"][0]["largest_batch"] == row["largest_batch"] and told["gpus"][0]["useful"] == 384 / 512 and told["samples"] is None
    assert main(["plan", folder, "--lengths", "512:384"]) == 2
    assert "lengths are 512 on average and 384 at most; expected the mean first" in capsys.readouterr().err

    file.write_text("12\nmany\n")
    assert main(["plan", folder, "--lengths", str(file)]) == 2
    assert "lengths.txt, line 2 is 'many'; expected a whole number of at least 1" in capsys.readouterr().err
    file.write_text("12\n\n\u00b2\n", encoding="utf-8")
    assert main(["plan", folder, "--lengths", str(file)]) == 2
    assert "lengths.txt, line 3 is '\u00b2'; expected a whole number of at least 1" in capsys.readouterr().err
    file.write_text("5000\n")
    assert main(["plan", folder, "--lengths", str(file), "--gpu", "rtx-3070-8gb"]) == 2
    assert "the longest sample has 5,000 tokens; the model has 1,024 positions" in capsys.readouterr().err
