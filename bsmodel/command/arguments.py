# SPDX-License-Identifier: Apache-2.0
"""What is written on the command line, read once; a mistake is one line of argparse's."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from bsmodel.command.asked import Asked, recorded_cards
from bsmodel.command.priced import add_offers, add_price, prices
from bsmodel.command.watching import watching
from bsmodel.errors import InvalidInputError
from bsmodel.files import require_writable
from bsmodel.hardware import DEFAULT_GPUS, Gpu, defaults, network_named
from bsmodel.parallel import KINDS, PRESETS, Parallel
from bsmodel.studies import Goal, for_card, one_of_each, pool, tapes
from bsmodel.tape import Tape, is_tape, load_all, require_agreement, save_all
from bsmodel.training import ADAPTERS, FLOAT8, OPTIMIZERS, PRECISIONS, QUANTIZED, WEIGHTS, Training
from bsmodel.units import MOST_COUNT, finite, format_bytes, parse_bytes, whole
from bsmodel.workloads import LOSSES, MADE_HERE, NAMED, Source

WORKLOADS = f"{', '.join(MADE_HERE)} or another of `bsmodel models`; timm:NAME, torchvision:NAME, config.json, module:attr, path.py:attr"
MODELS = f"{WORKLOADS}, a file of --save"

# Fields of `Parallel` that have a flag.
SHARING = ("tensor", "param_dtype", "reduce_dtype", "reshard_after_forward", "wrap", "preset", "sync_each_micro_step", "nodes")
SHAPE = ("seq_len", "image_size", "attention", "input", "loss")  # the options of a workload that have a flag


def positive(text: str) -> int:
    """A whole number of at least 1, and at most what a double counts exactly."""
    try:
        return whole("number", int(text) if text.strip().lstrip("+").isdecimal() else float(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1 (and at most {MOST_COUNT})") from None


def lengths(text: str) -> int | tuple[int, ...]:
    """Tokens a sample or pixels a side, or from how many to how many, `1024:131072`, in doublings or in steps, `1024:16384:256`."""
    found = tuple(positive(part) for part in text.split(":"))
    if len(found) > 3:
        raise argparse.ArgumentTypeError(f"{text!r} is no length, and no range of lengths; expected N, N:M or N:M:STEP")
    return found if len(found) > 1 else found[0]


def counts(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between, `1,2,4,8`, each once."""
    return tuple(dict.fromkeys(positive(part) for part in text.split(",")))


def natural(text: str) -> int:
    """A whole number of at least 0."""
    return 0 if text.strip() == "0" else positive(text)


def amount(text: str) -> float:
    """A finite number above 0."""
    try:
        return finite("number", float(text), above=0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no finite number above 0") from None


def size(text: str) -> int:
    """A size such as `40GiB`, in bytes."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


# -- flags that several commands share ---------------------------------------------------------------------------------------------------


def add_model(
    parser: argparse.ArgumentParser, gpus: str = f"the four defaults: {', '.join(DEFAULT_GPUS)}", several_lengths: bool = False, models: str = MODELS
) -> None:
    """What is trained, and on which cards."""
    parser.add_argument("model", help=models)
    parser.add_argument("--gpu", action="append", metavar="GPU", help=f"id or TOML file, repeatable (default: {gpus})")
    add_room(parser)
    add_shape(parser, several_lengths)


def add_shape(parser: argparse.ArgumentParser, several_lengths: bool = False) -> None:
    """The options of a workload."""
    of_lengths, more = (lengths, ", or N:M or N:M:STEP for a table") if several_lengths else (positive, "")
    longest = " with the longest context" if several_lengths else ""
    parser.add_argument("--seq-len", type=of_lengths, metavar="N", help=f"tokens a sample{more}{longest} (default: the model's own, 2048 at most)")
    parser.add_argument("--image-size", type=of_lengths, metavar="N", help=f"pixels a side{more} (default: the model's own)")
    attentions = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")
    parser.add_argument("--attention", choices=attentions, help="how attention is computed (default: the library's choice)")
    parser.add_argument("--input", metavar="SHAPE", help="one sample of a bare nn.Module, e.g. 3x224x224, 128:long for tokens (default: it is a Workload)")
    parser.add_argument("--loss", choices=LOSSES, help="with --input (default: what suits the output; the answer names it)")


def add_room(parser: argparse.ArgumentParser) -> None:
    """What of each card the allocator cannot have."""
    text = "CUDA context with kernels loaded, e.g. 900MiB (default: by the card's multiprocessors, hardware/runtime.toml)"
    parser.add_argument("--context", type=size, metavar="SIZE", help=text)
    parser.add_argument("--headroom", type=size, metavar="SIZE", help="leave so much of each card free, for a desktop or to be safe (default: nothing)")


def add_recipe(parser: argparse.ArgumentParser, several_devices: bool = False) -> None:
    """How it is trained, on how many devices; `several_devices`: whether numbers of devices, and ways to share, may be several."""
    add_training(parser)
    text = "micro-batches per optimizer step; with --target-batch a plan says how many it takes (default: the workload's own)"
    parser.add_argument("--accumulation", type=positive, metavar="N", help=text)
    add_parallel(parser, several_devices)


def add_training(parser: argparse.ArgumentParser) -> None:
    """How it is trained on one device; what is not given is as the workload says."""
    own = "(default: the workload's own)"
    parser.add_argument("--precision", metavar="NAME", help=f"{', '.join(PRECISIONS)} {own}")
    parser.add_argument("--optimizer", metavar="NAME", help=f"{', '.join(OPTIMIZERS)} {own}")
    parser.add_argument("--checkpointing", action="store_true", default=None, help="recompute activations in backward (default: keep them)")
    parser.add_argument("--channels-last", action="store_true", default=None, help="images and filters in channels-last (default: contiguous)")
    parser.add_argument("--ema", action="store_true", default=None, help="keep an average of the weights on the device (default: none)")
    parser.add_argument("--keep-outputs", action="store_true", default=None, help="the model's outputs live through backward (default: they do not)")
    parser.add_argument("--gradient-clipping", type=amount, metavar="NORM", help="largest gradient norm (default: not clipped)")
    parser.add_argument("--zero-grad", choices=("none", "zeros"), help="free gradients, or fill them with zeros (default: none, they are freed)")
    parser.add_argument(
        "--float8", metavar="RECIPE", help=f"linear layers multiply in float8 as by torchao: {', '.join(FLOAT8)} (default: as the precision says)"
    )
    parser.add_argument("--frozen", action="append", metavar="PREFIX", help="parameters not trained, repeatable (default: none)")
    add_adapters(parser)


def add_parallel(parser: argparse.ArgumentParser, several: bool) -> None:
    """How many devices share the work, and how."""
    number, default, more = (counts, (1,), ", or several with commas between") if several else (positive, 1, "")
    parser.add_argument("--devices", type=number, default=default, metavar="N", help=f"GPUs, each with a micro-batch of its own{more} (default: 1)")
    text = "what connects the nodes, of hardware/networks.toml, or a TOML file (default: any that the card is rented with)"
    parser.add_argument("--network", metavar="NAME", help=text)
    kinds = ", ".join(KINDS)
    parser.add_argument("--parallel", metavar="KIND", help=f"how they share it: {kinds}{more} (default: ddp, every one holds all)")
    text = "devices that hold each layer together and share a micro-batch (default: all of tp, one of fsdp2)"
    parser.add_argument("--tensor", type=positive, metavar="N", help=text)
    text = "what fsdp1, fsdp2, hsdp and DeepSpeed gather parameters and compute in (default: what they are held in)"
    parser.add_argument("--param-dtype", choices=("fp16", "bf16"), help=text)
    parser.add_argument("--reduce-dtype", choices=tuple(WEIGHTS), help="what fsdp1, fsdp2 or hsdp sums gradients in (default: what they come in)")
    text = "whether fsdp1, fsdp2 or hsdp gives gathered parameters back after forward (default: those of all but the root)"
    parser.add_argument("--reshard-after-forward", action=argparse.BooleanOptionalAction, default=None, help=text)
    text = "modules that fsdp1, fsdp2 or hsdp shards one by one, repeatable (default: the model's blocks)"
    parser.add_argument("--wrap", action="append", metavar="CLASS", help=text)
    text = "machines that the devices stand in (default: as few as hold them by eights; without --parallel, as --network has them)"
    parser.add_argument("--nodes", type=positive, metavar="N", help=text)
    parser.add_argument("--preset", metavar="NAME", help=f"whose trainer it is: {', '.join(PRESETS)} (default: torch)")
    text = "sum gradients over the devices in every micro-step, or with --no-sync in the last one only (default: as the preset does)"
    parser.add_argument("--sync", dest="sync_each_micro_step", action=argparse.BooleanOptionalAction, default=None, help=text)


def add_adapters(parser: argparse.ArgumentParser) -> None:
    """What is trained in the place of the weights, and what these are held in."""
    formats = ", ".join((*WEIGHTS, *QUANTIZED))
    parser.add_argument("--weights", metavar="NAME", help=f"{formats} (default: as the precision says; under adapters half precision where published so)")
    parser.add_argument("--double-quant", action="store_true", default=None, help="quantize the scales of nf4 and fp4, too (default: they are fp32)")
    text = "what products with nf4 and fp4 weights are computed in (default: as the precision computes)"
    parser.add_argument("--compute-dtype", choices=tuple(WEIGHTS), help=text)
    text = "leave what is not quantized as it is (default: in fp32, as prepare_model_for_kbit_training has it)"
    parser.add_argument("--no-upcast", dest="upcast", action="store_false", default=None, help=text)
    parser.add_argument("--adapter", metavar="NAME", help=f"{', '.join(ADAPTERS)} (default: lora where a rank is given)")
    parser.add_argument("--lora-rank", type=positive, metavar="R", help="train adapters of this rank, all else frozen (default: train the model)")
    text = "all-linear, attention, names of layers with commas between, or a regular expression (default: all-linear)"
    parser.add_argument("--lora-targets", metavar="NAMES", help=text)
    parser.add_argument("--lora-alpha", type=amount, metavar="X", help="scale of the adapters, which takes no memory (default: peft's)")
    parser.add_argument("--lora-dropout", type=amount, metavar="P", help="dropout before the adapters (default: none)")
    parser.add_argument("--adapter-dtype", choices=("fp32", "weights"), help="adapters in fp32, or as the weights (default: fp32, as peft has them)")
    parser.add_argument("--prompt-tokens", type=positive, metavar="N", help="virtual tokens for --adapter prompt-tuning (default: none)")


def add_recording(parser: argparse.ArgumentParser) -> None:
    """What becomes of the recording."""
    parser.add_argument("--save", metavar="FILE", help="write the recordings there, to ask again without torch (default: only the cache has them)")
    add_cache(parser)


def add_cache(parser: argparse.ArgumentParser) -> None:
    """Whether recordings and answers are kept."""
    text = "keep and reuse recordings, or do not (default: of named models and configurations, not of your own Python files)"
    parser.add_argument("--cache", action=argparse.BooleanOptionalAction, default=None, help=text)


def add_run(parser: argparse.ArgumentParser) -> None:
    """The run that is planned."""
    parser.add_argument("--target-batch", type=positive, metavar="N", help="samples per optimizer step (default: the largest micro-batch)")
    parser.add_argument("--samples", type=positive, metavar="N", help="samples in the training set (default: unknown, so no hours)")
    parser.add_argument("--epochs", type=amount, metavar="N", help="passes over it (default: unknown)")
    add_price(parser)
    add_offers(parser)


# -- what they mean ----------------------------------------------------------------------------------------------------------------------


def asked(options: argparse.Namespace) -> Asked:
    """What is trained: a workload by name, or the recordings in a file, which must be of what the flags say."""
    found = subject(options.model, **{name: getattr(options, name) for name in SHAPE})
    if isinstance(found, tuple):
        for tape in found:
            require_agreement(tape, changes(options))
    else:
        found.check()
    return found


def named(options: argparse.Namespace) -> Source:
    """The workload that is named; raises `InvalidInputError` for a file of recordings, which hold no model."""
    found = asked(options)
    if isinstance(found, tuple):
        raise InvalidInputError(f"{options.model!r} is a recording, which cannot be trained; give the model itself")
    return found


def subject(name: str, **options: Any) -> Asked:
    """A workload by name and options, of which None is none; or the recordings in a file, made with just these options, or at the length among them."""
    if name in NAMED or not (is_tape(name) or name.endswith(".gz")):
        if name not in NAMED and Path(name).is_file() and not name.endswith(".json"):
            raise InvalidInputError(f"no saved tape: {name!r}; expected a file written with --save, a config.json, or path.py:attr")
        return Source.of(name, **options)
    found = load_all(name, options)
    for tape in found:
        require_agreement(tape, {}, {option: value for option, value in options.items() if value is not None})
    return found


def gpus_asked(options: argparse.Namespace, found: Asked, otherwise: tuple[Gpu, ...] | None = None) -> tuple[list[Gpu], list[str]]:
    """The cards with the room that is asked, and notes: that, rows with figures that the user measured, and cards a recording leaves out.

    Where none is named, those of `otherwise` (default: the four defaults) that a recording is for, or those that it was made for.
    """
    if options.gpu:
        gpus = one_of_each([Gpu.named(name) for name in options.gpu])
        notes = [f"GPU row {gpu.id} from {name} (measured {gpu.calibrated_on})" for name, gpu in zip(options.gpu, gpus) if gpu.calibrated_on]
    else:
        gpus, notes = recorded_cards(found, defaults() if otherwise is None else otherwise)
    return with_room(options, gpus), [*notes, *room_asked(options)]


def with_room(options: argparse.Namespace, gpus: Iterable[Gpu]) -> list[Gpu]:
    """The cards as `--context` and `--headroom` say, in nodes connected as `--network` says."""
    found = list(gpus)
    if name := getattr(options, "network", None):
        found = [gpu.among(network_named(name)) for gpu in found]
    if options.context is None and options.headroom is None:
        return found
    return [gpu.leaving(options.headroom or 0, options.context) for gpu in found]


def room_asked(options: argparse.Namespace) -> list[str]:
    """A note of what `--context` and `--headroom` say."""
    said = [f"a CUDA context of {format_bytes(options.context)}"] if options.context else []
    said += [f"{format_bytes(options.headroom)} left free"] if options.headroom else []
    return [f"{' and '.join(said)} on each card, as asked"] if said else []


def changes(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of the recipe that are given; refused here where no model could be trained so."""
    names = sorted(set(Training.model_fields) & set(vars(options)))
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if "frozen" in given:
        given["frozen"] = tuple(given["frozen"])
    if (parallel := _shared(options)) is not None:
        given["parallel"] = parallel
    else:
        given.pop("parallel", None)
    Training(**given)
    return given


def _shared(options: argparse.Namespace) -> Parallel | None:
    """How the devices that are asked about share the work, where every one of them does not hold all: that is told of a recording of one."""
    given: dict[str, Any] = {name: value for name in SHARING if (value := getattr(options, name, None)) is not None}
    kind = getattr(options, "parallel", None)
    if kind in (None, "ddp") and not given:
        return None
    if options.devices < 2:
        raise InvalidInputError(f"--parallel {kind or 'KIND'} is for several devices; give --devices N")
    if "wrap" in given:
        given["wrap"] = tuple(given["wrap"])
    return Parallel(kind=kind or "ddp", devices=options.devices, **given)


def goal(options: argparse.Namespace, gpus: Sequence[Gpu], ladder: bool = False) -> Goal:
    """What is to be reached; refused where a price is for a card that is not asked about."""
    rate = (getattr(options, "base_lr", None), getattr(options, "base_batch", None))
    return Goal(options.target_batch, options.samples, options.epochs, *rate, prices(options, options.price, gpus), ladder)


@contextlib.contextmanager
def hands(found: Iterable[Asked], workers: int | None = None) -> Iterator[Executor | None]:
    """Who records: for code of the user's own, processes that it may end or fork and whose stdout is not the answer's; else whoever is best."""
    sources = [source for source in found if isinstance(source, Source)]
    if workers is None and all(source.library for source in sources):
        yield None
        return
    executor = pool([source.library for source in sources if source.library], workers)
    try:
        yield executor
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def tapes_for(found: Asked, options: argparse.Namespace, gpus: Sequence[Gpu]) -> list[Tape]:
    """The recording for each card, with a line of progress for each that is made."""
    if isinstance(found, tuple):
        return [for_card(found, gpu) for gpu in gpus]
    with watching("recordings") as watch, hands([found]) as executor:
        return tapes(found, changes(options), gpus, options.cache, watch, executor)


def changes_of(found: Asked, options: argparse.Namespace) -> dict[str, object]:
    """What the command line changes of the recipe; a recording has its own, which is what the flags say."""
    given = changes(options)
    return {} if isinstance(found, tuple) else given


def saved(found: Asked, options: argparse.Namespace, gpus: Sequence[Gpu]) -> Asked:
    """What is asked about; its recordings, once they have been written where `--save` says."""
    if not options.save:
        return found
    require_writable(options.save, "the tape")  # not found out after the work
    kept = found if isinstance(found, tuple) else tuple({tape.gpu.kernel_family: tape for tape in tapes_for(found, options, gpus)}.values())
    save_all(kept, options.save)
    return kept
