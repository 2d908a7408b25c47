# SPDX-License-Identifier: Apache-2.0
"""Plans as configurations: what the frameworks' own parsers read back is what the plan says."""

import functools
import importlib.util
import inspect
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bsmodel
from bsmodel import Training, emit
from bsmodel.configs.run import Run
from tests.emitted import RECIPES, accepted, arguments, parallel_of, planned, written

yaml = pytest.importorskip("yaml")


OLD_NAME = pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")  # which all of transformers 5 and TRL know


def test_accelerate_launches_what_is_planned(tmp_path, monkeypatch):
    accelerate = pytest.importorskip("accelerate")
    launch = pytest.importorskip("accelerate.commands.launch")
    parser = launch.launch_command_parser()
    for name, plan, emitted in accepted("accelerate"):
        asked = parser.parse_args(["--config_file", written(emitted, tmp_path), "train.py"])
        read, _, _ = launch._validate_launch_command(asked)
        run, parallel = Run.of(plan), parallel_of(plan)
        kind = parallel.kind if parallel else ""

        assert (read.num_processes, read.num_machines) == (plan.split.devices, run.nodes), name
        assert read.mixed_precision == ((run.half if run.stage else run.mixed) or "no")
        assert read.use_fsdp == (kind in ("fsdp1", "fsdp2", "hsdp")) and read.use_deepspeed == kind.startswith("deepspeed")
        assert read.multi_gpu == (kind in ("ddp", "tp"))
        if read.use_fsdp:
            reshard = {"FULL_SHARD": "true", "SHARD_GRAD_OP": "false"}.get(str(read.fsdp_reshard_after_forward), str(read.fsdp_reshard_after_forward).lower())
            assert read.fsdp_transformer_layer_cls_to_wrap == (",".join(parallel.wrap) or None)
            assert int(read.fsdp_version) == (1 if kind == "fsdp1" else 2)
            assert reshard == str(parallel.reshard_after_forward is not False).lower()
            assert read.fsdp_backward_prefetch == ("BACKWARD_PRE" if kind == "fsdp1" else None)
            assert str(read.fsdp_activation_checkpointing).lower() == str(run.recipe.checkpointing).lower()
        if kind == "hsdp":
            assert (read.parallelism_config_dp_replicate_size, read.parallelism_config_dp_shard_size) == (parallel.nodes, parallel.devices // parallel.nodes)
        assert read.parallelism_config_tp_size == plan.split.tensor
        if read.use_deepspeed:
            assert (read.zero_stage, read.gradient_accumulation_steps) == (int(kind[-1]), plan.split.accumulation)
        if read.use_deepspeed and importlib.util.find_spec("deepspeed"):
            monkeypatch.setenv("ACCELERATE_GRADIENT_CLIPPING", str(read.gradient_clipping))  # as launched
            assert accelerate.DeepSpeedPlugin().deepspeed_config["gradient_clipping"] == (run.recipe.gradient_clipping or math.inf)


@OLD_NAME
def test_the_trainer_reads_what_is_planned(tmp_path):
    transformers = pytest.importorskip("transformers")
    parser = transformers.HfArgumentParser(transformers.TrainingArguments)
    for name, plan, emitted in accepted("trainer"):
        if "deepspeed" in emitted.text and importlib.util.find_spec("deepspeed") is None:
            continue
        (read,) = parser.parse_yaml_file(written(emitted, tmp_path, "use_cpu: true\n"))
        agrees_with_the_trainer(name, plan, read)


def agrees_with_the_trainer(name, plan, read):
    run, parallel = Run.of(plan), parallel_of(plan)
    sharded = parallel is not None and parallel.shards and not parallel.kind.startswith("deepspeed")
    assert (read.per_device_train_batch_size, read.gradient_accumulation_steps) == (plan.split.micro_batch, plan.split.accumulation), name
    assert (read.learning_rate, read.warmup_steps, read.max_steps) == (plan.learning_rate, plan.warmup_steps, plan.total_steps)
    half = run.half if run.stage else run.mixed
    assert (read.bf16, read.fp16) == (half == "bf16", half == "fp16")
    if run.stage:  # of devices there is one here, and all else is to be the same in both
        assert all("train_batch_size" in one for one in read.hf_deepspeed_config.mismatches), name
    assert read.max_grad_norm == (run.recipe.gradient_clipping or 0.0)
    assert bool(read.fsdp) == sharded
    if sharded:
        reshard = {"FULL_SHARD": True, "SHARD_GRAD_OP": False}.get(read.fsdp_config["reshard_after_forward"], read.fsdp_config["reshard_after_forward"])
        assert read.fsdp_config["version"] == (1 if parallel.kind == "fsdp1" else 2)
        assert reshard == (parallel.reshard_after_forward is not False)
        assert read.fsdp_config["activation_checkpointing"] == run.recipe.checkpointing
        assert read.fsdp_plugin_args.get("backward_prefetch") == ("BACKWARD_PRE" if parallel.kind == "fsdp1" else None)
        assert read.fsdp_config.get("transformer_layer_cls_to_wrap", []) == list(parallel.wrap)
    else:
        assert bool(read.gradient_checkpointing) == run.recipe.checkpointing


@pytest.mark.parametrize("name", ["sgd", "sgd-momentum", "adamw", "adamw-fused", "rmsprop", "adagrad"])
def test_the_trainer_makes_the_optimizer_that_is_planned(name, tmp_path):
    import torch

    transformers = pytest.importorskip("transformers")
    emitted = emit(planned(Training(optimizer=name), goal=True), "trainer")
    (read,) = transformers.HfArgumentParser(transformers.TrainingArguments).parse_yaml_file(written(emitted, tmp_path, "use_cpu: true\n"))
    kind, arguments = transformers.Trainer.get_optimizer_cls_and_kwargs(read)
    rule = bsmodel.OPTIMIZERS[name]

    defaults = {field: one.default for field, one in inspect.signature(kind).parameters.items()}
    assert kind is getattr(torch.optim, rule.path.partition(":")[2])
    assert read.weight_decay == defaults["weight_decay"]
    assert all(value == defaults[field] for field, value in arguments.items() if field not in ("lr", *rule.arguments))
    assert {field: arguments.get(field) for field in rule.arguments if field != "lr"} == {field: v for field, v in rule.arguments.items() if field != "lr"}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its parser leaves the file open
def test_deepspeed_counts_the_batch_that_is_planned(tmp_path, monkeypatch):
    """DeepSpeed asks its process group how many take part: here there is none, and it is told."""
    config = pytest.importorskip("deepspeed.runtime.config")
    for name, plan, emitted in accepted("deepspeed"):
        if "auto" in emitted.text:
            continue
        monkeypatch.setattr(config.dist, "get_rank", lambda: 0)
        monkeypatch.setattr(config.dist, "get_world_size", functools.partial(int, plan.split.devices))
        read = config.DeepSpeedConfig(written(emitted, tmp_path))
        run = Run.of(plan)
        assert read.train_batch_size == plan.split.effective_batch, name
        assert (read.train_micro_batch_size_per_gpu, read.gradient_accumulation_steps) == (plan.split.micro_batch, plan.split.accumulation)
        assert read.zero_optimization_stage == run.stage
        assert read.gradient_clipping == (run.recipe.gradient_clipping or 0.0)
        assert read.bfloat16_config.enabled == (run.half == "bf16")
        assert read.optimizer_params["lr"] == plan.learning_rate
        assert read.scheduler_params["warmup_num_steps"] == plan.warmup_steps


@given(
    recipe=st.sampled_from([name for name, recipe in RECIPES.items() if "deepspeed" in str(recipe.parallel)]),
    **dict.fromkeys(("micro_batch", "accumulation"), st.integers(1, 10**6)),
)
def test_the_batches_of_deepspeed_are_products(recipe, micro_batch, accumulation):
    plan = planned(RECIPES[recipe])
    split = replace(plan.split, micro_batch=micro_batch, accumulation=accumulation)
    text = emit(replace(plan, split=split), "deepspeed").text
    read = json.loads(text)

    product = read["train_micro_batch_size_per_gpu"] * read["gradient_accumulation_steps"] * split.devices
    assert read["train_batch_size"] == product == split.effective_batch
    assert ("auto" in text) == (recipe == "zero3-auto")  # whose sizes of buckets are of the model's width


def test_lightning_makes_the_trainer_that_is_planned(tmp_path):
    pytest.importorskip("lightning")
    from lightning.pytorch.trainer.connectors import accelerator_connector

    for name, plan, emitted in accepted("lightning"):
        read = yaml.safe_load(Path(written(emitted, tmp_path)).read_text())["trainer"]
        run, strategy = Run.of(plan), read.pop("strategy", "auto")
        if isinstance(strategy, dict):
            if run.stage:
                assert strategy["init_args"]["config"]["zero_allow_untested_optimizer"], name
                continue
            module, _, kind = strategy["class_path"].rpartition(".")
            strategy = getattr(importlib.import_module(module), kind)(**strategy["init_args"])
        assert read["precision"] in accelerator_connector._PRECISION_INPUT_STR.__args__
        if run.kind in ("", "ddp"):
            precision = "bf16-mixed" if "16-mixed" in read["precision"] else read["precision"]  # float16 is refused without a GPU
            made = lightning_trainer(**{**read, "accelerator": "cpu", "precision": precision}, strategy=strategy)
            assert made.accumulate_grad_batches == plan.split.accumulation, name
            assert (made.num_devices * made.num_nodes, made.num_nodes) == (plan.split.devices, run.nodes)
            assert (made.gradient_clip_val, made.max_steps) == (run.recipe.gradient_clipping, plan.total_steps)
        assert read["devices"] * read["num_nodes"] == plan.split.devices
        assert read.get("gradient_clip_val") == (None if run.kind == "fsdp1" else run.recipe.gradient_clipping)


def lightning_trainer(**arguments):
    from lightning.pytorch import Trainer

    return Trainer(**arguments, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)


def test_lightnings_command_line_reads_what_is_planned(tmp_path):
    import torch

    pytest.importorskip("jsonargparse")
    cli = pytest.importorskip("lightning.pytorch.cli")
    demos = pytest.importorskip("lightning.pytorch.demos.boring_classes")

    class Plain(demos.BoringModel):
        configure_optimizers = cli.LightningModule.configure_optimizers

    parser = cli.LightningArgumentParser()
    parser.add_lightning_class_args(cli.Trainer, "trainer")
    parser.add_optimizer_args((torch.optim.Optimizer,))
    for name, plan, emitted in accepted("lightning"):
        if "DeepSpeed" in emitted.text:
            continue
        read = parser.parse_path(written(emitted, tmp_path))
        assert read.trainer.accumulate_grad_batches == plan.split.accumulation, name
        assert read.optimizer.init_args.lr == plan.learning_rate


def test_timm_reads_what_is_planned(tmp_path):
    optim = pytest.importorskip("timm.optim", exc_type=ImportError)
    import torch

    for name, plan, emitted in accepted("timm"):
        read, run = yaml.safe_load(emitted.text), Run.of(plan)
        assert (read["batch_size"], read["grad_accum_steps"]) == (plan.split.micro_batch, plan.split.accumulation), name
        assert (read["lr"], read["amp"]) == (plan.learning_rate, run.mixed is not None)
        if "bnb" not in read["opt"]:
            kept = {field: read[field] for field in ("momentum",) if field in read}
            made = optim.create_optimizer_v2([torch.zeros(2, requires_grad=True)], read["opt"], read["lr"], **kept, **read.get("opt_kwargs", {}))
            rule = bsmodel.OPTIMIZERS[plan.fit.tape.optimizer]
            assert type(made).__name__ == rule.path.partition(":")[2]
            assert {field: made.defaults[field] for field in rule.arguments if field != "lr"} == {f: v for f, v in rule.arguments.items() if f != "lr"}


def test_timms_script_knows_every_flag():
    """The names of `train.py` (huggingface/pytorch-image-models), which is not in timm's package, as of 1.0.31."""
    known = set(
        "batch_size grad_accum_steps amp amp_dtype model_dtype grad_checkpointing channels_last model_ema clip_grad clip_mode opt momentum opt_kwargs lr "
        "epochs warmup_epochs weight_decay".split()
    )
    for _, _, emitted in accepted("timm"):
        assert set(yaml.safe_load(emitted.text)) <= known


@OLD_NAME
def test_trl_reads_what_is_planned(tmp_path):
    trl = pytest.importorskip("trl")
    for name, plan, emitted in accepted("trl"):
        if "deepspeed" in emitted.text and importlib.util.find_spec("deepspeed") is None:
            continue
        path = written(emitted, tmp_path, "use_cpu: true\n")
        read, model = trl.TrlParser((trl.SFTConfig, trl.ModelConfig)).parse_args_and_config(["--config", path])
        agrees_with_the_trainer(name, plan, read)
        recipe = Run.of(plan).recipe
        assert model.use_peft == recipe.adapts
        if recipe.adapts:
            assert (model.lora_r, model.lora_alpha, model.lora_dropout) == (recipe.lora_rank, recipe.lora_alpha, recipe.lora_dropout)
            assert (model.lora_target_modules, model.use_dora) == ("all-linear", recipe.adapter == "dora")
        assert (model.load_in_4bit, model.use_bnb_nested_quant) == (recipe.weights == "nf4", recipe.double_quant)


def test_axolotl_reads_what_is_planned():
    config = pytest.importorskip("axolotl.utils.schemas.config")
    for name, plan, emitted in accepted("axolotl"):
        fields = yaml.safe_load(emitted.text)
        read = config.AxolotlInputConfig(**fields, base_model="model", datasets=[{"path": "data", "type": "alpaca"}])
        assert not set(fields) - set(config.AxolotlInputConfig.model_fields), name
        assert (read.micro_batch_size, read.gradient_accumulation_steps) == (plan.split.micro_batch, plan.split.accumulation)
        assert (read.learning_rate, read.warmup_steps, read.max_steps) == (plan.learning_rate, plan.warmup_steps, plan.total_steps)


def test_torchtitan_reads_what_is_planned():
    manager = pytest.importorskip("torchtitan.config.manager")
    pytest.importorskip("torchtitan.models.llama3.config_registry")
    for name, plan, emitted in accepted("torchtitan"):
        read = manager.ConfigManager().parse_args(["--module", "llama3", "--config", "llama3_debugmodel", *arguments(emitted)])
        run, degrees = Run.of(plan), read.parallelism
        assert (read.training.local_batch_size, read.training.global_batch_size) == (plan.split.micro_batch, plan.split.effective_batch), name
        size = degrees.data_parallel_replicate_degree * degrees.data_parallel_shard_degree * degrees.tensor_parallel_degree
        assert (size, degrees.tensor_parallel_degree) == (plan.split.devices, plan.split.tensor)
        assert degrees.data_parallel_replicate_degree == {"hsdp": run.nodes, "ddp": plan.split.devices}.get(run.kind, 1)
        assert (read.training.steps, read.lr_scheduler.warmup_steps) == (plan.total_steps, plan.warmup_steps)
        assert read.optimizer.param_groups[0].optimizer_kwargs["lr"] == plan.learning_rate
        assert read.training.max_norm == (run.recipe.gradient_clipping or math.inf)
        assert type(read.activation_checkpoint).__qualname__ == ("FullAC.Config" if run.recipe.checkpointing else "NoneType")
        assert read.training.mixed_precision_param == {"bf16": "bfloat16", "fp32": "float32"}[run.mixed or run.held]


def test_torchtune_reads_what_is_planned(tmp_path):
    parse = pytest.importorskip("torchtune.config._parse", exc_type=ImportError)
    (config := tmp_path / "stock.yaml").write_text("optimizer: {_component_: torch.optim.AdamW, fused: true, lr: 2e-5}\nepochs: 1\n")
    for name, plan, emitted in accepted("torchtune"):
        asked = parse.TuneRecipeArgumentParser().parse_known_args(["--config", str(config), *arguments(emitted)])
        read = parse._merge_yaml_and_cli_args(*asked)
        run = Run.of(plan)
        assert (read.batch_size, read.gradient_accumulation_steps) == (plan.split.micro_batch, plan.split.accumulation), name
        assert (read.clip_grad_norm, read.enable_activation_checkpointing) == (run.recipe.gradient_clipping, run.recipe.checkpointing)
        assert read.optimizer.lr == plan.learning_rate and read.dtype == run.held
        assert (read.epochs, read.max_steps_per_epoch) == (3, None)


def test_skypilot_reads_what_is_planned():
    schemas = pytest.importorskip("sky.utils.schemas")
    jsonschema = pytest.importorskip("jsonschema")
    for name, plan, emitted in accepted("skypilot"):
        read = yaml.safe_load(emitted.text)
        jsonschema.validate(read, schemas.get_task_schema())
        jsonschema.validate(read["resources"], schemas.get_resources_schema())
        assert read["num_nodes"] * int(read["resources"]["ordered"][0]["accelerators"].rpartition(":")[2]) == plan.split.devices, name


def test_kubernetes_knows_every_field():
    models = pytest.importorskip("kubernetes.client.models")

    def known(value, kind):
        if kind.lower().startswith("list["):
            return all(known(one, kind[5:-1]) for one in value)
        if kind.lower().startswith("dict"):
            return isinstance(value, dict)
        if not hasattr(models, kind):
            return isinstance(value, {"str": str, "int": int, "bool": bool}[kind])
        types = {name: getattr(models, kind).openapi_types[field] for field, name in getattr(models, kind).attribute_map.items()}
        assert set(value) <= set(types), (kind, set(value) - set(types))
        return all(known(one, types[name]) for name, one in value.items())

    for name, plan, emitted in accepted("kubernetes"):
        read = yaml.safe_load(emitted.text)
        assert known(read, "V1Job"), name
        container = read["spec"]["template"]["spec"]["containers"][0]
        assert container["resources"]["limits"]["nvidia.com/gpu"] * read["spec"]["completions"] == plan.split.devices


def test_ray_reads_what_is_planned():
    pytest.importorskip("ray.train")
    for name, plan, emitted in accepted("ray"):
        module = {}
        exec(compile(emitted.text, emitted.file, "exec"), module)
        assert (module["scaling_config"].num_workers, module["scaling_config"].use_gpu) == (plan.split.devices, True), name
        assert module["train_loop_config"]["micro_batch"] == plan.split.micro_batch
        assert module["train_loop_config"]["accumulation"] == plan.split.accumulation
