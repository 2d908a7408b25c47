# SPDX-License-Identifier: Apache-2.0
"""What a configuration cannot say is said beside it or refused; its text, and the command that writes it."""

import ast
import functools
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bsmodel
from bsmodel import Gpu, InvalidInputError, Training, UnknownNameError, emit
from bsmodel.command import main
from bsmodel.configs import FRAMEWORKS, require_settings, texts
from bsmodel.configs.run import Run, sentences
from tests.emitted import RECIPES, ZERO2, accepted, card, planned, recorded, shared
from tests.models import of_size
from tests.test_surface import MINE, run

yaml = pytest.importorskip("yaml")


# -- nothing is said that the plan does not say, and nothing is dropped --------------------------------------------------------------------


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_a_plan_does_not_say_is_not_written(framework):
    for _, _, emitted in accepted(framework, goal=False):
        settings = "\n".join(line for line in emitted.text.splitlines() if not line.startswith("#"))
        assert not re.search(r"\blr\b|learning_rate|warmup|max_steps|epochs|training\.steps", settings)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_everything_is_a_setting_or_said_or_refused(framework):
    """A framework with a script of its user's says what it has no setting for; the others refuse it and name it."""
    odd = {
        "ema": Training(ema=True),
        "zero_grad": Training(zero_grad="zeros"),
        "frozen": Training(frozen=("embed",)),
        "float8": Training(precision="bf16", float8="rowwise"),
        "optimizer": Training(optimizer="lamb"),
        "keep_outputs": Training(keep_outputs=True),
        "channels_last": Training(channels_last=True),
    }
    for part, recipe in odd.items():
        parallel = ZERO2 if framework == "deepspeed" else None
        plan = planned(recipe.model_copy(update={"parallel": parallel}), framework=framework)
        sentence = sentences(Run.of(plan))[part]
        if framework == "timm" and part in ("ema", "channels_last"):  # which it has settings for
            assert yaml.safe_load(emit(plan, framework).text)[part if part == "channels_last" else "model_ema"] is True
        elif FRAMEWORKS[framework].script:
            assert sentence in "\n".join(emit(plan, framework).said)
        else:
            with pytest.raises(InvalidInputError, match=re.escape(f"{framework} has no setting for {sentence}")):
                emit(plan, framework)


def test_what_a_file_says_comes_first_in_it():
    for framework in FRAMEWORKS:
        if framework in ("deepspeed", "axolotl", "torchtune"):
            continue
        plan = planned(RECIPES["mixed"], 200_000, framework, goal=True)
        emitted = emit(plan, framework)
        head = "\n".join(emitted.text.splitlines()[:3])
        split = plan.split
        assert f"small on a100-80gb, bf16-mixed, adamw: micro-batch {split.micro_batch} x accumulation {split.accumulation} x devices 1" in head
        assert f"bsmodel {bsmodel.__version__}" in head and "reserved of" in head and " s (" in head
        assert emitted.said and all(f"# {line}\n" in emitted.text for line in emitted.said)


def test_a_file_without_comments_has_them_beside():
    emitted = emit(planned(RECIPES["zero2-deepspeed"]), "deepspeed")

    assert json.loads(emitted.text) and "optimizer torch.optim.AdamW" in "\n".join(emitted.said)
    assert all(line not in emitted.text for line in emitted.said)


@pytest.mark.parametrize(
    ("framework", "recipe", "line"),
    [
        ("lightning", Training(parallel=shared("zero1")), "lightning does not train by zero1; it takes one device or --parallel ddp, fsdp1"),
        ("deepspeed", Training(), "deepspeed does not train by one device alone; it takes --parallel deepspeed-zero1"),
        ("torchtune", Training(precision="bf16-mixed"), "torchtune trains in fp32 or bf16 throughout, and not in bf16-mixed; plan with precision bf16"),
        ("torchtitan", Training(precision="fp16-mixed"), "torchtitan trains in fp32, bf16 or bf16-mixed"),
        ("torchtitan", Training(precision="bf16", parallel=shared("fsdp2")), "torchtitan sums gradients in fp32, and the plan in bf16"),
        ("axolotl", Training(precision="bf16-mixed"), "plan with --weights bf16"),
        ("axolotl", Training(precision="fp16-mixed"), "axolotl loads weights in the fp16 that it computes in, of which no gradients are scaled"),
        ("axolotl", Training(precision="fp16"), "axolotl scales the loss where it computes in fp16, and precision fp16 does not"),
        ("axolotl", Training(weights="bf16"), "axolotl loads weights in the fp32 that it computes in, and not in bf16; plan with --weights fp32"),
        ("trl", Training(precision="bf16", lora_rank=8, adapter_dtype="weights"), "trl has adapters in float32; plan with --adapter-dtype fp32"),
        ("trl", Training(precision="bf16-mixed", lora_rank=8, parallel=shared("deepspeed-zero3")), "by deepspeed-zero3 in the dtype of the weights"),
        ("trl", Training(precision="bf16", weights="nf4-torchao", lora_rank=8), "trl quantizes by bitsandbytes"),
        ("trl", Training(parallel=shared("fsdp2", tensor=2)), "trl has no setting for layers in parts over 2 devices each"),
        ("timm", Training(optimizer="lion"), "timm has no setting for optimizer lion"),
        ("accelerate", Training(parallel=shared("deepspeed-zero3", preset="hf-auto")), "preset hf-auto is the Trainer's"),
        ("accelerate", Training(parallel=shared("ddp", 3, nodes=2)), "3 devices in 2 nodes are not as many in each"),
    ],
)
def test_what_a_framework_cannot_do_is_refused_in_one_line(framework, recipe, line):
    with pytest.raises(InvalidInputError, match=re.escape(line)) as refused:
        emit(planned(recipe, framework=framework), framework)
    assert "\n" not in str(refused.value)


def test_what_is_gathered_otherwise_than_it_is_computed_in_is_not_dropped():
    odd = Training(precision="bf16-mixed", parallel=shared("fsdp2", param_dtype="fp16"))

    assert "- parameters gathered and computed in fp16" in emit(planned(odd), "accelerate").said
    with pytest.raises(InvalidInputError, match="trl has no setting for parameters gathered and computed in fp16"):
        emit(planned(odd), "trl")


def test_a_step_of_the_users_own_is_run_by_no_trainer():
    plan = planned(Training(), own_step=True)
    for framework, rule in FRAMEWORKS.items():
        if rule.shares and framework != "deepspeed":
            with pytest.raises(InvalidInputError, match=f"small has a step of its own, which {framework} does not run"):
                emit(plan, framework)
    assert emit(plan, "skypilot").text


def test_who_shares_otherwise_than_was_planned_is_told():
    told = "\n".join(emit(planned(Training(parallel=shared("fsdp2"))), "accelerate").said)

    assert "Planned as by torch, and accelerate does otherwise" in told and "plan with --preset accelerate" in told
    assert "otherwise" not in "\n".join(emit(planned(RECIPES["fsdp2"]), "accelerate").said)


def test_unknown_frameworks_and_rows_without_a_plan():
    with pytest.raises(UnknownNameError, match="unknown framework 'accelerator'; nearest: accelerate"):
        emit(planned(Training()), "accelerator")
    tiny = of_size(Gpu.named("rtx-3070-8gb"), 510)
    (row,) = bsmodel.study([recorded()], gpus=[tiny]).rows
    with pytest.raises(InvalidInputError, match="there is no plan to write down"):
        emit(row, "accelerate", tiny)


def test_a_row_says_what_its_plan_says():
    goal = bsmodel.Goal(8192, 1_000_000, 3.0, 1e-3)
    (row,) = bsmodel.study([recorded()], gpus=[card()], goals=[goal]).rows
    plan = bsmodel.plan(bsmodel.fit(recorded(), card()), 8192, samples=1_000_000, epochs=3.0, base_lr=1e-3)

    for framework in ("trainer", "timm", "kubernetes"):
        assert emit(row, framework, card()) == emit(plan, framework)


def settings_of(framework, recipe):
    """The settings of a file of YAML, or the words of a command line."""
    text = emit(planned(recipe, framework=framework), framework).text
    return yaml.safe_load(text) if FRAMEWORKS[framework].file.endswith("yaml") else [line for line in text.splitlines() if not line.startswith("#")]


# -- no default of a framework stands where the plan is otherwise ----------------------------------------------------------------------------


def test_weights_decay_as_the_optimizers_of_a_plan_do():
    import importlib
    import inspect

    for name in bsmodel.OPTIMIZERS:
        run = Run.of(planned(Training(optimizer=name)))
        if run.optimizer_path is None:
            continue
        home, _, kind = run.optimizer_path.rpartition(".")
        if home.startswith("bitsandbytes"):
            pytest.importorskip("bitsandbytes")
        made = getattr(importlib.import_module(home), kind)
        assert run.weight_decay == inspect.signature(made).parameters["weight_decay"].default, name
    for framework in ("trainer", "trl", "axolotl", "timm"):
        assert settings_of(framework, Training())["weight_decay"] == 0.01 and settings_of(framework, Training(optimizer="sgd"))["weight_decay"] == 0.0


def test_axolotl_takes_nothing_that_it_finds_by_itself():
    """It multiplies in TF32 where a card can, has kernels of its own for adapters, and recomputes by the older way, unless it is told otherwise."""
    lora = Training(precision="bf16-mixed", checkpointing=True, lora_rank=8)
    told = settings_of("axolotl", lora)

    assert told["tf32"] is False and settings_of("axolotl", Training(precision="tf32"))["tf32"] is True
    assert [told[f"lora_{part}_kernel"] for part in ("mlp", "qkv", "o", "embedding")] == [False] * 4
    assert told["gradient_checkpointing_kwargs"] == {"use_reentrant": False}


def test_torchtitan_and_torchtune_run_the_plain_step_of_a_plan():
    titan, tune = settings_of("torchtitan", Training()), settings_of("torchtune", Training(precision="bf16", parallel=shared("fsdp2", tensor=2)))

    assert {"--training.disable_cuda_graphs", "--compile.no-enable", "--optimizer.param_groups.0.optimizer_kwargs.weight_decay 0.01"} <= set(titan)
    assert {"compile=false", "optimizer_in_bwd=false", "fsdp_cpu_offload=false", "optimizer.weight_decay=0.01"} <= set(tune)
    assert "optimizer_in_bwd" not in "\n".join(settings_of("torchtune", RECIPES["lora-tune"]))  # which its recipes of LoRA do not know


def test_buckets_are_of_the_size_that_is_planned():
    odd = Training(parallel=shared("ddp", bucket_mb=10.5))

    assert settings_of("lightning", odd)["trainer"]["strategy"]["init_args"]["bucket_cap_mb"] == 10.5
    assert "- bucket_cap_mb=10.5" in emit(planned(odd), "trainer").said  # whose field is whole
    with pytest.raises(InvalidInputError, match=r"trl has no setting for bucket_cap_mb=10\.5"):
        emit(planned(odd), "trl")


@pytest.mark.parametrize(
    ("framework", "recipe", "line"),
    [
        ("accelerate", Training(precision="bf16-mixed", parallel=shared("fsdp1")), "in fp32, and accelerate does both in bf16; plan with --param-dtype bf16"),
        ("accelerate", Training(precision="bf16-mixed", weights="bf16", parallel=shared("fsdp2")), "accelerate has in float32 again where they are sharded"),
        ("accelerate", Training(parallel=shared("ddp", 16)), "Yours to add on each of the 2 machines: machine_rank, main_process_ip"),
        ("accelerate", Training(parallel=shared("tp")), "Layers are put in parts where the model is loaded: by tp_plan='auto'"),
        ("trainer", Training(), "Run with one card in CUDA_VISIBLE_DEVICES"),
        ("lightning", Training(precision="bf16-mixed", parallel=shared("fsdp1")), "in fp32, and lightning does both in bf16; plan with --param-dtype bf16"),
        ("lightning", Training(parallel=shared("fsdp1", wrap=("Block",))), "FSDPStrategy shards Block one by one where it has an auto_wrap_policy"),
        ("lightning", Training(gradient_clipping=1.0, parallel=shared("fsdp1")), "- gradients clipped to a norm of 1.0"),
        ("lightning", Training(parallel=shared("fsdp2")), "Of your module's configure_model, which shards: fsdp2: parameters"),
        ("lightning", Training(parallel=shared("fsdp2", preset="torchtitan")), "as by torchtitan: fsdp2 has embedding and head beside the blocks, gathers and"),
        ("lightning", Training(parallel=shared("ddp", 16)), "Launched by torchrun --nnodes=2 --nproc-per-node=8"),
        ("lightning", Training(parallel=shared("ddp", preset="accelerate")), "Planned as by accelerate, which lightning is not"),
        ("deepspeed", Training(precision="tf32", parallel=ZERO2), 'torch.set_float32_matmul_precision("high")'),
        ("torchtitan", Training(precision="bf16-mixed"), "Planned without fully_shard, by which torchtitan"),
        ("torchtune", Training(precision="bf16", parallel=shared("fsdp2", tensor=2)), "Yours to add: tensor_parallel_plan"),
        ("trl", Training(precision="bf16-mixed", weights="nf4", lora_rank=8), "Planned with adapters in float32, which trl has in bf16 over quantized"),
        (
            *("trl", Training(precision="bf16", checkpointing=True, adapter_dtype="weights", lora_rank=8, parallel=shared("deepspeed-zero3"))),
            "Planned with checkpoints that are not reentrant",
        ),
        ("axolotl", Training(precision="bf16-mixed", weights="nf4", lora_rank=8), "embeddings, head and norms in float32, which axolotl has in half precision"),
        ("ray", Training(parallel=shared("ddp", nodes=2)), "Planned on 2 nodes of 4 workers"),
        ("kubernetes", Training(parallel=shared("deepspeed-zero3", preset="hf-auto")), 'as by hf-auto: as "auto" in a configuration'),
        ("trainer", Training(), "trainer's own, of which no plan speaks: rates that fall to 0 as a line"),
    ],
)
def test_where_a_framework_does_otherwise_is_said(framework, recipe, line):
    assert line in "\n".join(emit(planned(recipe, framework=framework), framework).said)


def test_lightning_computes_in_half_precision_once():
    """Autocast beside parameters that `fully_shard` gathers in bf16 would be another step than that of trainers who gather so."""
    gathered = Training(precision="bf16-mixed", parallel=shared("fsdp2", preset="accelerate"))

    assert settings_of("lightning", gathered)["trainer"]["precision"] == "32-true"
    assert settings_of("lightning", Training(precision="bf16-mixed", parallel=shared("fsdp2")))["trainer"]["precision"] == "bf16-mixed"


def test_texts_and_images_are_not_mixed_up():
    text, image = planned(Training()), planned(Training(), framework="timm")
    untimed = replace(text, timing=None)

    assert "max_length: 512" in emit(untimed, "trl").text and "--training.seq_len 512" in emit(untimed, "torchtitan").text
    assert "- samples of 512 tokens" in emit(text, "accelerate").said and "tokens" not in "".join(emit(image, "accelerate").said)
    for framework in ("trl", "axolotl", "torchtitan", "torchtune"):
        with pytest.raises(InvalidInputError, match=f"{framework} trains on texts, and samples of small have no tokens_per_sample"):
            emit(image, framework)
    with pytest.raises(InvalidInputError, match="timm trains on images, and samples of small are texts of 512 tokens"):
        emit(text, "timm")


def test_options_of_the_model_are_not_dropped():
    of = functools.partial(planned, Training(), 8192)
    text = of(options={"seq_len": 512, "attention": "eager"})

    assert emit(text, "accelerate").said.count("- the model and its samples with attention eager") == 1 and "seq_len" not in emit(text, "accelerate").text
    assert all("attn_implementation: eager" in emit(text, framework).text for framework in ("trl", "axolotl"))
    assert "img_size: 160" in emit(of("timm", options={"image_size": 160}), "timm").text
    with pytest.raises(InvalidInputError, match="torchtitan has no setting for the model and its samples with attention eager; plan without"):
        emit(text, "torchtitan")


# -- names of cards --------------------------------------------------------------------------------------------------------------------------


def test_names_are_only_those_of_cards_that_hold_the_peak():
    """`H100` is an H100 NVL somewhere, and elsewhere has 80 GB."""
    plan = planned(Training())
    nvl, full = Gpu.named("h100-nvl-94gb"), replace(plan.peak, reserved_upper_bytes=88 << 30)
    asked = yaml.safe_load(emit(replace(plan, peak=full, fit=replace(plan.fit, gpu=nvl)), "skypilot").text)["resources"]
    small = yaml.safe_load(emit(replace(plan, fit=replace(plan.fit, gpu=nvl)), "skypilot").text)["resources"]["ordered"]

    assert [one["accelerators"] for one in asked["ordered"]] == ["H100-NVL:1", "96GB+:1"] or asked["ordered"][0] == {"accelerators": "H100-NVL:1"}
    assert {"accelerators": "H100:1"} not in asked["ordered"] and {"accelerators": "H100:1"} in small


@given(size=st.floats(0.1, 170))
def test_every_card_with_the_memory_asked_for_holds_the_peak(size):
    plan = planned(RECIPES["half"])
    peak = replace(plan.peak, reserved_upper_bytes=int(size * (1 << 30)))
    try:
        text = emit(replace(plan, peak=peak), "skypilot").text
    except InvalidInputError:
        return
    if least := re.search(r"(\d+)GB\+", text):
        cards = [gpu for gpu in Gpu.all() if int(re.search(r"-(\d+)gb", gpu.id)[1]) >= int(least[1])]
        assert cards and all(gpu.sure_bytes >= peak.reserved_upper_bytes and gpu.supports_bf16 for gpu in cards)


# -- texts -----------------------------------------------------------------------------------------------------------------------------------

scalars = st.booleans() | st.none() | st.integers(-(10**18), 10**18) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
names = st.text(min_size=1)


values = scalars | st.lists(scalars, max_size=3)
groups = st.dictionaries(names, values, min_size=1, max_size=3)


@given(fields=st.dictionaries(names, values | groups | st.lists(groups, max_size=2) | st.dictionaries(names, groups, min_size=1, max_size=2), max_size=4))
def test_yaml_is_read_back_as_it_was(fields):
    assert (yaml.safe_load(texts.as_yaml(fields, ["what\nit: says #"])) or {}) == fields


@given(said=st.text())
def test_no_name_breaks_out_of_a_comment(said):
    for text in (texts.as_yaml({"key": 1}, [said]), texts.as_arguments({"key": 1}, [said]), texts.as_python({"key": "1"}, [said])):
        assert [line for line in text.splitlines() if not line.startswith("#")] in (["key: 1"], ["key=1"], ["key = 1"])
    assert yaml.safe_load(texts.as_yaml({"key": 1}, ["a"])) == {"key": 1} and ast.parse(texts.as_python({"key": "1"}, [said]))


# -- the command ------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recorded().save("recording.gz")
    return "recording.gz"


def test_the_command_writes_files_and_says_so(saved, capsys):
    assert main(["plan", saved, "--gpu", "a100-80gb", "--target-batch", "4096", "--emit", "trainer", "--emit", "kubernetes=job.yaml"]) == 0
    printed = capsys.readouterr().out

    assert "Note: trainer: trainer.yaml is written." in printed and "Note: kubernetes: job.yaml is written." in printed
    assert "per_device_train_batch_size: 4096" in Path("trainer.yaml").read_text() and "kind: Job" in Path("job.yaml").read_text()
    assert main(["plan", saved, "--gpu", "a100-80gb", "--emit", "ray", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"][-1] == "ray: ray_train.py is written"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--gpu", "a100-80gb", "--gpu", "l4-24gb", "--emit", "trainer"], "--emit writes the plan of one GPU, and 2 are asked about: choose by --gpu"),
        (["--gpu", "a100-80gb", "--emit", "trainr"], "unknown framework 'trainr'; nearest: trainer"),
        (["--gpu", "a100-80gb", "--emit", "trainer=there/is/none"], "cannot write the file for trainer"),
        (["--gpu", "a100-80gb", "--emit", "trainer=one", "--emit", "timm=one"], "--emit timm=one writes 'one', which something else is written to"),
        (["--gpu", "a100-80gb", "--emit", "deepspeed", "--emit", "trainer"], "deepspeed does not train by one device alone"),
    ],
)
def test_the_command_refuses_and_writes_nothing(flags, line, saved, capsys):
    before = sorted(Path().iterdir())

    assert main(["plan", saved, *flags]) == 2
    assert line in capsys.readouterr().err and sorted(Path().iterdir()) == before


def test_nothing_is_written_where_nothing_fits(saved, capsys):
    assert main(["plan", saved, "--gpu", "rtx-3070-8gb", "--context", "7.65GiB", "--emit", "trainer"]) == 1
    assert not Path("trainer.yaml").exists() and capsys.readouterr().out


@pytest.mark.parametrize(
    ("framework", "given", "line"),
    [
        ("torchtune", {"optimizer": "lion"}, "torchtune has no setting for optimizer lion"),
        ("lightning", {"parallel": shared("hsdp", 16)}, "lightning does not train by hsdp"),
        ("timm", {"float8": "rowwise", "precision": "bf16"}, "timm has no setting for linear layers in float8"),
    ],
)
def test_flags_are_refused_before_anything_is_recorded(framework, given, line):
    with pytest.raises(InvalidInputError, match=line):
        require_settings(framework, given, card(), 16 if "parallel" in given else 1)
    require_settings("accelerate", {"optimizer": "lion"}, card())
    require_settings("axolotl", {"precision": "bf16-mixed"}, card())  # which the rest of the recipe may allow


def test_the_flag_is_refused_before_the_model_is_made(capsys):
    assert main(["plan", MINE, "--gpu", "a100-80gb", "--optimizer", "lion", "--emit", "torchtune"]) == 2
    assert capsys.readouterr().err == "bsmodel: torchtune has no setting for optimizer lion (Chen 2023, arXiv 2302.06675, algorithm 2); plan without\n"


def test_no_framework_is_imported_to_write_for_it(saved):
    replace(recorded(), optimizer="adamw", tokens_per_sample=512).save("texts.gz")
    check = (
        "import sys; from bsmodel.command import main; end = sys.argv.index('end');"
        "code = main(sys.argv[1:end]) or main(sys.argv[end + 1:]);"
        "sys.exit(code or any(name in sys.modules for name in ('torch', 'transformers', 'accelerate', 'lightning', 'yaml')))"
    )
    on = ("--gpu", "a100-80gb", "--emit")
    every = [flag for name in FRAMEWORKS if name not in ("deepspeed", "timm") for flag in ("--emit", name)]
    found = run("-c", check, "plan", saved, *on, "timm", "end", "plan", "texts.gz", *on, "ray=again.py", *every)

    assert (found.returncode, found.stderr) == (0, "")
