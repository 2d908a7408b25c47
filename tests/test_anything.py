# SPDX-License-Identifier: Apache-2.0
"""Whatever is asked, there is an answer or one line that refuses: never a traceback, and never exit code 1 for anything but "does not fit".

`BSMODEL_EXAMPLES=10000 python -m pytest tests/test_anything.py` tries more than the few examples of every day.
"""

import copy
import gzip
import json
import math
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bsmodel
from bsmodel.command import main
from bsmodel.planning import learning_rate, splits
from bsmodel.units import parse_bytes
from tests.models import Attention, next_token, tokens, workload

EXAMPLES = int(os.environ.get("BSMODEL_EXAMPLES", "40"))
FEW = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
FEWER = settings(FEW, max_examples=max(1, EXAMPLES // 4))  # each records a model

NUMBERS = st.one_of(
    st.integers(-3, 3000),
    st.sampled_from([0, -1, 2**31, 2**53, 2**63, 2**64, 10**26, -(10**26), 10**400, math.nan, math.inf, -math.inf, 1e308, -0.0, 0.5, 8.0, 1e-320]),
    st.floats(),
    st.sampled_from([np.int64(8), np.int8(-1), np.uint64(2**63), np.float32(8.0), np.float64("nan"), np.array(8), np.array([8]), np.bool_(True)]),
)
ODD = st.one_of(
    st.none(), st.booleans(), st.text(max_size=8), st.sampled_from([b"8", [], [8], {}, {"a": 1}, (), object(), 8j, "8", "\x1b[31m", "a\nb", "\ud800"])
)
ANY = st.one_of(NUMBERS, ODD)


def answered(call, *arguments, **keywords):
    """What a call gives, or None where it refuses in one line."""
    try:
        return call(*arguments, **keywords)
    except bsmodel.BsmodelError as refusal:
        message = str(refusal)
        assert message.strip() and len(message.splitlines()) == 1, repr(message)
        return None


def asked(capsys, *words):
    """The exit code of a command, all it may print being an answer, or one line that refuses."""
    try:
        code = main(list(words))
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err and code in (0, 1, 2), (words, code, captured.err)
    if code == 2:
        last = captured.err.rstrip("\n").splitlines()[-1]
        assert captured.out == "" and last.startswith("bsmodel: "), (words, captured)
    if code == 1:
        assert "does not fit" in captured.out or "OUT OF MEMORY" in captured.out or '"fits": false' in captured.out, (words, captured)
    return code


# -- numbers ---------------------------------------------------------------------------------------------------------------------------


@FEW
@given(NUMBERS | ODD, NUMBERS | ODD, NUMBERS | ODD)
def test_numbers_given_to_the_library(tape, a100, one, two, three):
    answered(bsmodel.predict, tape, a100, one, two)
    answered(bsmodel.fit, tape, a100, one)
    answered(bsmodel.step_time, tape, a100, one, two)
    answered(bsmodel.step_time, tape, a100, [one, two])
    answered(bsmodel.footprint, tape, one)
    form = bsmodel.footprint(tape)
    answered(form, one)
    answered(form.largest, one)
    answered(bsmodel.breakdown, tape, one)
    answered(splits, one, two, three)
    answered(learning_rate, "sgd", one, two, three)
    answered(bsmodel.Gpu.named("a100-40gb").model_copy, update={"memory_bytes": one, "bandwidth_bytes_per_s": two})


@FEW
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("target_batch", "devices", "samples", "epochs", "base_lr", "base_batch"), ANY)))
def test_numbers_given_to_a_plan(tape, a100, question):
    found = answered(bsmodel.plan, bsmodel.fit(tape, a100), **question)
    if found is not None and found.timing is not None:
        assert all(math.isfinite(value) for value in (found.timing.step.seconds, found.timing.hours or 0, found.timing.cost_usd or 0, found.learning_rate or 0))


@FEW
@given(st.text(max_size=30) | st.sampled_from(["nanGiB", "1e400", "-1GB", "١٢GiB", "0x10", "1_0"]))
def test_texts_that_are_sizes_or_settings(text):
    answered(bsmodel.Settings.parse, text)
    answered(parse_bytes, text)


# -- recipes ---------------------------------------------------------------------------------------------------------------------------

RECIPES = st.fixed_dictionaries(
    {},
    optional={
        "precision": st.sampled_from([*bsmodel.PRECISIONS, "int8"]) | ODD,
        "optimizer": st.sampled_from([*bsmodel.OPTIMIZERS, "adamx"]) | ODD,
        "checkpointing": st.booleans() | ANY,
        "accumulation": st.integers(1, 3) | ANY,
        "channels_last": st.booleans() | ODD,
        "gradient_clipping": st.just(1.0) | ANY,
        "zero_grad": st.sampled_from(["none", "zeros"]) | ODD,
        "ema": st.booleans() | ODD,
        "lora_rank": st.integers(1, 8) | ANY,
        "frozen": st.just(("embed",)) | ODD,
        "keep_outputs": st.booleans() | ODD,
        "unheard_of": ODD,
    },
)


@FEWER
@given(RECIPES, st.sampled_from(["t4-16gb", "v100-16gb", "a100-40gb", "h100-80gb"]))
def test_recipes(recipe, card):
    training = answered(lambda: bsmodel.Training(**recipe))
    if training is None:
        return
    gpu = bsmodel.Gpu.named(card)
    tape = answered(bsmodel.trace, workload(Attention, tokens, next_token, name="attention"), training, gpu)
    if tape is not None:
        found, peak = answered(bsmodel.fit, tape, gpu), answered(bsmodel.predict, tape, gpu, 2)
        assert found is None or found.batch >= 0
        assert peak is None or peak.reserved_bytes > 0


# -- files with one thing changed ------------------------------------------------------------------------------------------------------


def places(document, limit=6):
    """Paths to what stands in a document, of long lists only the ends."""
    found = [()]
    keys = document if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in list(keys)[:limit] + list(keys)[-1:] if isinstance(document, list) else keys:
        found += [(key, *path) for path in places(document[key], limit)]
    return found


def changed(document, path, value):
    """A copy with something else at a path."""
    if not path:
        return value
    whole = copy.deepcopy(document)
    inner = whole
    for key in path[:-1]:
        inner = inner[key]
    if value is DELETED:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return whole


DELETED = object()
JSON = st.one_of(
    st.sampled_from(
        [DELETED, None, True, -1, 0, 1, 2**31, 2**63, 10**26, 10**400, 0.5, 1e308, math.nan, math.inf, "", "8", "\x1b[31mred", [], [[]], {}, {"a": {}}]
    ),
    st.integers(-5, 10**6),
    st.text(max_size=5),
)


@FEW
@given(st.data())
def test_tapes_with_one_field_changed(tape, a100, tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "changed.json.gz"
    tape.save(path)
    document = json.loads(gzip.decompress(path.read_bytes()))
    document = changed(document, data.draw(st.sampled_from(places(document))), data.draw(JSON))
    path.write_bytes(gzip.compress(json.dumps(document if document is not DELETED else None).encode(), 1))
    found = answered(bsmodel.Tape.load, path)
    if found is not None:
        fit = answered(bsmodel.fit, found, a100)
        answered(bsmodel.predict, found, a100, 4)
        answered(bsmodel.step_time, found, a100, 4)
        answered(bsmodel.breakdown, found, 4)
        if fit is not None and fit.batch:
            answered(bsmodel.plan, fit, 64)


@FEW
@given(st.data())
def test_tapes_with_bytes_changed(tape, tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "bytes.json.gz"
    tape.save(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    answered(bsmodel.Tape.load, path)


CONFIGS = [
    {
        **{"model_type": "bert", "architectures": ["BertForSequenceClassification"], "hidden_size": 64, "num_hidden_layers": 1},
        **{"num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 100, "max_position_embeddings": 64, "num_labels": 2},
        **{"hidden_act": "gelu", "hidden_dropout_prob": 0.1, "initializer_range": 0.02, "id2label": {"0": "a", "1": "b"}, "pad_token_id": 0},
    },
    {
        **{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 100, "max_position_embeddings": 64, "tie_word_embeddings": True},
        **{"rope_theta": 10000.0, "rms_norm_eps": 1e-6, "attention_bias": False, "bos_token_id": 1, "eos_token_id": 2},
    },
    {
        **{"model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4},
        **{"intermediate_size": 64, "image_size": 32, "patch_size": 16, "num_channels": 3},
    },
    {
        **{"_class_name": "UNet2DConditionModel", "sample_size": 8, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 32},
        **{"block_out_channels": [32, 64], "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"]},
        **{"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "layers_per_block": 1, "attention_head_dim": 8},
    },
]


@FEWER
@given(st.data())
def test_configurations_with_one_field_changed(tmp_path_factory, capsys, data):
    path = tmp_path_factory.getbasetemp() / "config.json"
    document = data.draw(st.sampled_from(CONFIGS))
    document = changed(document, data.draw(st.sampled_from(places(document))), data.draw(JSON))
    path.write_text(json.dumps(None if document is DELETED else document))
    asked(capsys, "predict", str(path), "--batch", "2", "--gpu", "a100-40gb", "--no-cache")


# -- command lines ---------------------------------------------------------------------------------------------------------------------

WORDS = st.sampled_from(["0", "-1", "1", "8", "1024", "1.5", "nan", "inf", "1e26", "99999999999999999999999999", "", "abc", "\x1b[31m", "a=b", "=", "é", "3x4"])
FLAGS = {
    "--gpu": st.sampled_from(["a100-40gb", "t4-16gb", "h100-80gb", "nvidia", "/dev/null", "/", ""]),
    "--precision": st.sampled_from([*bsmodel.PRECISIONS, "x"]),
    "--optimizer": st.sampled_from([*bsmodel.OPTIMIZERS, "x"]),
    "--price": st.sampled_from(["a100-40gb=1.5", "a100-40gb=nan", "h100-80gb=2", "x=1", "=", "a100-40gb=-1"]),
    "--zero-grad": st.sampled_from(["none", "zeros", "x"]),
    **dict.fromkeys(("--seq-len", "--image-size", "--accumulation", "--gradient-clipping", "--lora-rank", "--frozen", "--input"), WORDS),
    **dict.fromkeys(("--target-batch", "--devices", "--samples", "--epochs", "--base-lr", "--base-batch", "--batch"), WORDS),
}


@FEW
@given(
    st.sampled_from(["plan", "compare", "predict", "explain"]),
    st.lists(st.sampled_from(sorted(FLAGS)).flatmap(lambda flag: st.tuples(st.just(flag), FLAGS[flag])), max_size=4),
    st.booleans(),
)
def test_command_lines_about_a_recording(tape, tmp_path_factory, capsys, command, flags, as_json):
    path = tmp_path_factory.getbasetemp() / "asked.tape"
    if not path.exists():
        tape.save(path)
    words = [command, str(path), *(word for flag in flags for word in flag), *(["--json"] if as_json else [])]
    asked(capsys, *words)


@pytest.mark.parametrize("command", ["plan", "predict"])
@FEWER
@given(st.lists(st.sampled_from(sorted(FLAGS)).flatmap(lambda flag: st.tuples(st.just(flag), FLAGS[flag])), max_size=3))
def test_command_lines_about_a_configuration(tmp_path_factory, capsys, command, flags):
    path = tmp_path_factory.getbasetemp() / "small.json"
    path.write_text(json.dumps(CONFIGS[0]))
    words = [command, str(path), "--gpu", "a100-40gb", *(["--batch", "2"] if command == "predict" else []), *(word for flag in flags for word in flag)]
    asked(capsys, *words)
