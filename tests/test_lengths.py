# SPDX-License-Identifier: Apache-2.0
"""The second axis: a few recordings tell every length, to the byte; what is no polynomial in the length is refused, or answered as far as it is one."""

import json
from dataclasses import replace

import numpy as np
import pytest

import bsmodel
from bsmodel import Training
from bsmodel.command import main
from bsmodel.memory import longest
from bsmodel.recording.checks import same_memory
from bsmodel.studies.padded import longest_of
from bsmodel.tape import Lengths
from tests.test_adapters import GPT2, LLAMA
from tests.test_configs import BERT, built
from tests.test_refusals import line_of

pytest.importorskip("transformers")

BASE = (128, 256, 384, 1024)
MODELS = {
    "llama": ({**LLAMA, "architectures": ["LlamaForCausalLM"]}, Training(precision="bf16-mixed")),
    "llama checkpointed": ({**LLAMA, "architectures": ["LlamaForCausalLM"]}, Training(precision="bf16", checkpointing=True)),
    "llama eager": ({**LLAMA, "architectures": ["LlamaForCausalLM"], "attn_implementation": "eager"}, Training(precision="fp32")),
    "gpt2": ({**GPT2, "architectures": ["GPT2LMHeadModel"]}, Training(precision="fp32", optimizer="sgd")),
    "bert": ({**BERT, "max_position_embeddings": 1024, "architectures": ["BertForMaskedLM"]}, Training(precision="bf16-mixed")),
}


@pytest.fixture(scope="module")
def recorded():
    """Recordings of a configuration at these lengths."""
    import tempfile
    from pathlib import Path

    def record(fields, training, lengths, gpu):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "config.json"
            file.write_text(json.dumps(fields))
            return [bsmodel.trace(built(str(file), seq_len=length)[0], training, gpu) for length in lengths]

    return record


@pytest.mark.parametrize("name", MODELS)
def test_every_length_is_what_a_recording_of_it_is(name, recorded, a100):
    fields, training = MODELS[name]
    lengths = Lengths.through(recorded(fields, training, BASE, a100), BASE)
    others = (512, 640, 768, 896)
    for length, direct in zip(others, recorded(fields, training, others, a100), strict=True):
        told = lengths.at(length)
        assert same_memory(told, direct) and told.tokens_per_sample == direct.tokens_per_sample == length
        assert all(np.array_equal(getattr(told.operations, part), getattr(direct.operations, part)) for part in ("fixed", "per_sample", "per_pair"))
        assert bsmodel.predict(told, a100, 3) == bsmodel.predict(direct, a100, 3)


@pytest.fixture(scope="module")
def lengths(recorded, a100):
    fields, training = MODELS["llama checkpointed"]
    base = (256, 384, 512, 2048)
    return Lengths.through(recorded({**fields, "max_position_embeddings": 1 << 20}, training, base, a100), base)


def test_the_longest_context_and_the_largest_batch_are_inverse(lengths, a100):
    lengths = replace(lengths, most=1 << 20)
    for batch in (1, 3, 17):
        tokens = longest(lengths, a100, batch)
        assert tokens % lengths.step == 0 and bsmodel.fit(lengths.at(tokens), a100).batch >= batch
        assert bsmodel.fit(lengths.at(tokens + lengths.step), a100).batch < batch
    assert longest(lengths, a100, 1 << 19) == 0


def test_what_was_not_recorded_is_refused(lengths):
    assert line_of(lengths.at, 1000) == "length is 1000; expected a multiple of 128, such as 1024"
    assert "length is 4096; expected a whole number from 1 to 2048" in line_of(lengths.at, 4096)
    assert "expected 3 multiples" in line_of(Lengths.through, lengths.tapes, (256, 300, 512))


def test_a_size_that_is_no_polynomial_is_named(lengths, a100, recorded):
    odd = replace(lengths.tapes[2], fixed_bytes=lengths.tapes[2].fixed_bytes + np.arange(len(lengths.tapes[2].fixed_bytes)))
    tapes = [*lengths.tapes, replace(odd, options={})]
    assert "no polynomial of degree 2; ask for one at a time" in line_of(Lengths.through, tapes, (256, 384, 512, 640))
    fields, training = MODELS["llama"]
    other = recorded(fields, training, [512], a100)
    assert "takes another path at length 512 than at length 256" in line_of(Lengths.through, [*lengths.tapes[:2], *other], (256, 384, 512))


def test_a_table_by_length_says_where_positions_and_the_formula_end(config, capsys):
    folder = config({**GPT2, "architectures": ["GPT2LMHeadModel"]})
    code = main(["plan", folder, "--seq-len", "256:4096", "--gpu", "rtx-3070-8gb", "--json", "--no-cache"])
    answer = json.loads(capsys.readouterr().out)
    assert code == 0 and answer["limit"] == 1024 and "the model has 1,024 positions: no longer samples than these" in answer["notes"]
    assert [row["seq_len"] for row in answer["rows"]] == [256, 512, 1024] and answer["longest"] == {"rtx-3070-8gb": 1024}
    batches = [row["largest_batch"] for row in answer["rows"]]
    assert batches == sorted(batches, reverse=True) and batches[-1] > 0

    assert main(["plan", folder, "--seq-len", "1000:2048", "--gpu", "rtx-3070-8gb"]) == 2
    assert "seq-len begins at 1000; expected a multiple of 128, such as 1024" in capsys.readouterr().err
    assert main(["plan", folder, "--seq-len", "256:1024", "--target-batch", "64"]) == 2
    assert "--target-batch goes with one length" in capsys.readouterr().err


def test_the_front_door_records_at_several_lengths(a100, config):
    folder = config({**GPT2, "architectures": ["GPT2LMHeadModel"]})
    found = bsmodel.trace_lengths(lambda tokens: built(folder, seq_len=tokens)[0], Training(precision="fp32"), a100, (128, 256, 384, 1024))
    assert bsmodel.longest(found, a100) == 1024
    assert bsmodel.predict(found.at(640), a100, 2) == bsmodel.predict(bsmodel.trace(built(folder, seq_len=640)[0], Training(precision="fp32"), a100), a100, 2)


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

    file.write_text("12\nmany\n")
    assert main(["plan", folder, "--lengths", str(file)]) == 2
    assert "lengths.txt, line 2 is 'many'; expected a whole number of at least 1" in capsys.readouterr().err
    file.write_text("5000\n")
    assert main(["plan", folder, "--lengths", str(file), "--gpu", "rtx-3070-8gb"]) == 2
    assert "the longest sample has 5,000 tokens; the model has 1,024 positions" in capsys.readouterr().err
