# SPDX-License-Identifier: Apache-2.0
"""Which frameworks a plan is written for, as a table, and how it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bsmodel.configs import clusters, engines, huggingface, texts, titans
from bsmodel.configs.run import Run, Says, covered, sentences
from bsmodel.errors import InvalidInputError, UnknownNameError
from bsmodel.hardware import Gpu
from bsmodel.parallel import KINDS, PRESETS
from bsmodel.planning import Plan, Split
from bsmodel.studies import Row
from bsmodel.training import Training
from bsmodel.units import format_bytes

ONE = ""  # the kind of sharing of one device
_ZERO = ("deepspeed-zero1", "deepspeed-zero2", "deepspeed-zero3")
_EVERY = (ONE, *KINDS)
_LINEAR = "rates that fall to 0 as a line after warm-up (lr_scheduler_type)"


@dataclass(frozen=True)
class FrameworkRule:
    """What is written for a framework: under which name, by which function, as what text, and for which kinds of sharing.

    `script`: whether it runs a script of the user's own, to which can be left what its file has no setting for; that is refused elsewhere.
    `preset` is that of `bsmodel.parallel.PRESETS` that does as it does, `adds` what its file needs beside, and no plan knows; `own` is what it does by itself
    of what no plan says, `trains` whether it is texts or images alone that it trains on.
    """

    file: str
    what: str
    says: Callable[[Run], Says]
    text: Callable[[Mapping[str, Any], Sequence[str]], str]
    kinds: tuple[str, ...]
    script: bool = True
    preset: str = ""
    adds: str = ""
    own: str = ""
    trains: Literal["", "texts", "images"] = ""
    shares: bool = True  # whether it is told how devices share the work, or only how many there are


FRAMEWORKS: dict[str, FrameworkRule] = {
    "accelerate": FrameworkRule(
        *("accelerate.yaml", "accelerate launch --config_file", huggingface.accelerate, texts.as_yaml, (ONE, "ddp", "fsdp1", "fsdp2", "hsdp", "tp", *_ZERO)),
        preset="accelerate",
    ),
    "trainer": FrameworkRule(
        *("trainer.yaml", "HfArgumentParser(TrainingArguments).parse_yaml_file", huggingface.trainer, texts.as_yaml),
        kinds=(ONE, "ddp", "fsdp1", "fsdp2", *_ZERO),
        preset="accelerate",
        own=_LINEAR,
    ),
    "lightning": FrameworkRule(
        *("lightning.yaml", "LightningCLI --config", engines.lightning, texts.as_yaml), kinds=(ONE, "ddp", "fsdp1", "fsdp2", "tp", *_ZERO)
    ),
    "deepspeed": FrameworkRule("deepspeed.json", "deepspeed.initialize(config=...)", engines.deepspeed, texts.as_json, _ZERO),
    "torchtitan": FrameworkRule(
        *("torchtitan.args", "python -m torchtitan.train --module MODULE --config CONFIG $(grep -v '^#' FILE)", titans.torchtitan, texts.as_arguments),
        kinds=(ONE, "ddp", "fsdp2", "hsdp", "tp"),
        script=False,
        preset="torchtitan",
        own="how rates fall after warm-up, betas and the loss, as CONFIG has them",
        trains="texts",
    ),
    "torchtune": FrameworkRule(
        *("torchtune.args", "tune run RECIPE --config CONFIG $(grep -v '^#' FILE)", titans.torchtune, texts.as_arguments),
        kinds=(ONE, "fsdp2"),
        script=False,
        own="how rates fall after warm-up and the loss, as CONFIG has them",
        trains="texts",
    ),
    "axolotl": FrameworkRule(
        *("axolotl.yaml", "axolotl train", huggingface.axolotl, texts.as_yaml, (ONE, "ddp", "fsdp2", "hsdp", *_ZERO)),
        script=False,
        preset="accelerate",
        adds="base_model and datasets",
        own="rates that fall as a cosine after warm-up (lr_scheduler)",
        trains="texts",
    ),
    "trl": FrameworkRule(
        *("trl.yaml", "trl sft --config", huggingface.trl, texts.as_yaml, (ONE, "ddp", "fsdp1", "fsdp2", *_ZERO)),
        script=False,
        preset="accelerate",
        adds="model_name_or_path and dataset_name",
        own=_LINEAR,
        trains="texts",
    ),
    "timm": FrameworkRule(
        *("timm.yaml", "train.py --config", engines.timm, texts.as_yaml, (ONE, "ddp")),
        script=False,
        adds="model and data_dir, which are arguments as well",
        own="rates that fall as a cosine (sched) after 5 epochs of warm-up, over 300 epochs, where no number of them is below",
        trains="images",
    ),
    "skypilot": FrameworkRule("skypilot.yaml", "sky launch", clusters.skypilot, texts.as_yaml, _EVERY, adds="setup and run", shares=False),
    "kubernetes": FrameworkRule(
        "kubernetes.yaml", "kubectl apply -f", clusters.kubernetes, texts.as_yaml, _EVERY, adds="the container's image and command", shares=False
    ),
    "ray": FrameworkRule(
        "ray_train.py",
        "TorchTrainer(train_func, train_loop_config=train_loop_config, scaling_config=scaling_config)",
        *(clusters.ray, texts.as_python, _EVERY),
        shares=False,
    ),
}


@dataclass(frozen=True)
class Emitted:
    """A plan as a framework reads it: the usual name of the file, its text, and what is said of it, which stands in the text where that has comments."""

    framework: str
    file: str
    text: str
    said: tuple[str, ...]


def rule_of(framework: str) -> FrameworkRule:
    """The rule of a framework; raises `UnknownNameError` for one that nothing is written for."""
    if framework not in FRAMEWORKS:
        raise UnknownNameError("framework", framework, FRAMEWORKS)
    return FRAMEWORKS[framework]


def require_settings(framework: str, given: Mapping[str, Any], gpu: Gpu, devices: int = 1) -> None:
    """Raises `InvalidInputError` where fields of a recipe say what a framework cannot do; what else the recipe says is seen with the plan.

    `given` are fields of `Training`, of a recipe for `devices` GPUs like this one.
    """
    rule, recipe = rule_of(framework), Training(**given)
    if recipe.parallel is not None:
        _require_kind(framework, recipe.parallel.kind)
    if rule.script:
        return
    split = Split(1, 1, devices, recipe.parallel.tensor if recipe.parallel is not None else 1)
    run = Run("", False, gpu, recipe, recipe.optimizer_name, split, *(None,) * 7)
    try:
        says = rule.says(run)
    except InvalidInputError:  # which what else the recipe says may change
        return
    _require_said(framework, {part: said for part, said in sentences(run).items() if part in given}, says)


def _require_kind(framework: str, kind: str) -> None:
    """Raises `InvalidInputError` where a framework does not share work in this way, with the kinds that it has."""
    kinds = rule_of(framework).kinds
    if kind not in kinds:
        known = ", ".join(name for name in kinds if name)
        raise InvalidInputError(f"{framework} does not train by {kind or 'one device alone'}; it takes {'one device or ' * (ONE in kinds)}--parallel {known}")


def _require_samples(framework: str, run: Run) -> None:
    """Raises `InvalidInputError` where a framework trains on texts alone and the plan is of none, or on images and it is of texts."""
    trains = FRAMEWORKS[framework].trains
    if trains == "texts" and run.tokens is None:
        raise InvalidInputError(f"{framework} trains on texts, and samples of {run.model} have no tokens_per_sample")
    if trains == "images" and run.tokens is not None:
        raise InvalidInputError(f"{framework} trains on images, and samples of {run.model} are texts of {run.tokens} tokens")


def _require_said(framework: str, parts: Mapping[str, str], says: Says) -> None:
    """Raises `InvalidInputError` for what a framework without a script has no setting for."""
    for part, sentence in parts.items():
        if part not in says:
            raise InvalidInputError(f"{framework} has no setting for {sentence}; plan without")


def emit(found: Plan | Row, framework: str, gpu: Gpu | None = None) -> Emitted:
    """A plan, or a row of a study, as the file or the arguments that a framework reads.

    `framework` is one of `bsmodel.configs.FRAMEWORKS`; `gpu` is the card of a row where it is none of the catalogue. Only what the plan says is written.
    What a file has no setting for is said in it, for the script that runs there to do. Raises `UnknownNameError` for a framework that is in no table, and
    `InvalidInputError` for a row without a plan, and for a plan that a framework cannot follow.
    """
    rule, run = rule_of(framework), Run.of(found, gpu)
    _require_kind(framework, run.kind)
    if run.own_step and rule.shares:
        raise InvalidInputError(f"{run.model} has a step of its own, which {framework} does not run; emit skypilot, kubernetes or ray")
    _require_samples(framework, run)
    says = (covered("sharing") if rule.shares else {}) | rule.says(run)
    if rule.trains:
        says = covered("tokens") | says
    if not rule.script:
        _require_said(framework, sentences(run), says)
    left = [sentence for part, sentence in sentences(run).items() if part not in says]
    settings: dict[str, Any] = {}
    for part in says.values():
        if isinstance(part, dict):
            _merge(settings, part)
    said = (*_head(run, rule, framework), *(part for part in says.values() if isinstance(part, str)), *_left(left), *_otherwise(run, framework, says))
    return Emitted(framework, rule.file, rule.text(settings, said), said)


def _merge(settings: dict[str, Any], more: Mapping[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, Mapping) and isinstance(settings.get(name), dict):
            _merge(settings[name], value)
        else:
            settings[name] = dict(value) if isinstance(value, Mapping) else value


def _head(run: Run, rule: FrameworkRule, framework: str) -> list[str]:
    """What the file was made from, and what was predicted."""
    import bsmodel

    split = run.split
    shared = f" / {split.tensor}" if split.tensor > 1 else ""
    gathered = f" gathered in {run.parallel.param_dtype}" if run.parallel and run.parallel.param_dtype else ""
    product = f"micro-batch {split.micro_batch} x accumulation {split.accumulation} x devices {split.devices}{shared} = {split.effective_batch} samples"
    lines = [
        f"{run.model} on {run.gpu.id}, {run.recipe.precision}{gathered}, {run.optimizer}: {product} an optimizer step",
        f"Predicted by bsmodel {bsmodel.__version__}: {_memory(run)}, {_time(run)}",
        f"For {rule.what.replace('FILE', rule.file)}",
    ]
    adds = [f"Yours to add: {rule.adds}"] if rule.adds else []
    own = [f"{framework}'s own, of which no plan speaks: {rule.own}"] if rule.own else []
    return [*lines, *adds, *own]


def _memory(run: Run) -> str:
    assert run.peak is not None
    low, likely, high = (format_bytes(size) for size in (run.peak.reserved_lower_bytes, run.peak.reserved_bytes, run.peak.reserved_upper_bytes))
    between = "" if low == likely == high else f" ({low} to {high})"
    return f"{likely}{between} reserved of the {format_bytes(run.gpu.memory_bytes)} of each card"


def _time(run: Run) -> str:
    if run.timing is None:
        return "the time is not known"
    step = run.timing.step
    return f"{step.seconds:.4g} s ({step.low_seconds:.4g} to {step.high_seconds:.4g}) an optimizer step"


def _left(sentences: Sequence[str]) -> list[str]:
    """What the file does not say and a script has to."""
    return ["Left to your script:", *(f"- {sentence}" for sentence in sentences)] if sentences else []


def _otherwise(run: Run, framework: str, says: Says) -> list[str]:
    """Where a framework shares work in a way of its own, and the plan is of another."""
    rule, parallel = FRAMEWORKS[framework], run.parallel
    if parallel is None or says.get("sharing") != {}:
        return []
    if rule.preset and run.kind.startswith(PRESETS[rule.preset].kinds):
        own = f"and {framework} does otherwise: {PRESETS[rule.preset].what}; plan with --preset {rule.preset} for that"
        return [] if parallel.preset == rule.preset else [f"Planned as by {parallel.preset}, {own}"]
    if parallel.preset == "torch" or run.stage:
        return []
    return [f"Planned as by {parallel.preset}, which {framework} is not: {PRESETS[parallel.preset].what}; plan with --preset torch"]
