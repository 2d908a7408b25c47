# SPDX-License-Identifier: Apache-2.0
"""What is written on the command line, read once; a mistake is one line of argparse's."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from bsmodel.command.watching import watching
from bsmodel.errors import InvalidInputError
from bsmodel.hardware import DEFAULT_GPUS, Gpu, defaults
from bsmodel.planning import Price
from bsmodel.studies import Goal, tapes
from bsmodel.tape import Tape
from bsmodel.training import OPTIMIZERS, PRECISIONS, Training
from bsmodel.units import parse_bytes
from bsmodel.workloads import NAMED, Source

MODELS = f"one of {', '.join(NAMED)}; timm:NAME, torchvision:NAME, config.json, module:attr, path.py:attr, or a recording, tape.json.gz"


def price(text: str) -> tuple[str, float]:
    """`GPU=USD` as a name and a price an hour."""
    name, separator, figure = text.partition("=")
    try:
        value = float(figure)
    except ValueError:
        value = 0.0
    if not separator or not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no price; expected GPU=USD, e.g. a100-40gb=1.29")
    return name, value


def positive(text: str) -> int:
    """A whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return value


def size(text: str) -> int:
    """A size such as `40GiB`, in bytes."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


# -- flags that several commands share ---------------------------------------------------------------------------------------------------


def add_model(parser: argparse.ArgumentParser, gpus: str = f"the four defaults: {', '.join(DEFAULT_GPUS)}") -> None:
    """What is trained, and on which cards."""
    parser.add_argument("model", help=MODELS)
    parser.add_argument("--gpu", action="append", metavar="GPU", help=f"id or TOML file, repeatable (default: {gpus})")
    parser.add_argument("--seq-len", type=positive, metavar="N", help="tokens a sample (default: the model's own)")
    parser.add_argument("--image-size", type=positive, metavar="N", help="pixels a side (default: the model's own)")
    parser.add_argument("--attention", choices=("sdpa", "eager"), help="how attention is computed (default: the library's choice)")
    parser.add_argument("--input", metavar="SHAPE", help="shape of one sample for a bare nn.Module, e.g. 3x224x224 (default: the model is a Workload)")


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """How it is trained; what is not given is as the workload says."""
    own = "(default: the workload's own)"
    parser.add_argument("--precision", metavar="NAME", help=f"{', '.join(PRECISIONS)} {own}")
    parser.add_argument("--optimizer", metavar="NAME", help=f"{', '.join(OPTIMIZERS)} {own}")
    parser.add_argument("--checkpointing", action="store_true", default=None, help="recompute activations in backward (default: keep them)")
    parser.add_argument("--channels-last", action="store_true", default=None, help="images and filters in channels-last (default: contiguous)")
    parser.add_argument("--ema", action="store_true", default=None, help="keep an average of the weights on the device (default: none)")
    parser.add_argument("--keep-outputs", action="store_true", default=None, help="the model's outputs live through backward (default: they do not)")
    parser.add_argument("--accumulation", type=positive, metavar="N", help=f"micro-steps per optimizer step while recording {own}")
    parser.add_argument("--gradient-clipping", type=float, metavar="NORM", help="largest gradient norm (default: not clipped)")
    parser.add_argument("--zero-grad", choices=("none", "zeros"), help="free gradients, or fill them with zeros (default: none, they are freed)")
    parser.add_argument("--lora-rank", type=positive, metavar="R", help="train adapters of this rank, all else frozen (default: train the model)")
    parser.add_argument("--frozen", action="append", metavar="PREFIX", help="parameters not trained, repeatable (default: none)")


def add_recording(parser: argparse.ArgumentParser) -> None:
    """What becomes of the recording."""
    parser.add_argument("--save", metavar="FILE", help="write the recording there, to ask again without torch (default: only the cache has it)")
    add_cache(parser)


def add_cache(parser: argparse.ArgumentParser) -> None:
    """Whether recordings and answers are kept."""
    text = "keep and reuse recordings, or do not (default: of named models and configurations, not of your own Python files)"
    parser.add_argument("--cache", action=argparse.BooleanOptionalAction, default=None, help=text)


def add_run(parser: argparse.ArgumentParser) -> None:
    """The run that is planned."""
    parser.add_argument("--target-batch", type=positive, metavar="N", help="samples per optimizer step (default: the largest micro-batch)")
    parser.add_argument("--devices", type=positive, default=1, metavar="N", help="data-parallel GPUs (default: 1)")
    parser.add_argument("--samples", type=positive, metavar="N", help="samples in the training set (default: unknown, so no hours)")
    parser.add_argument("--epochs", type=float, metavar="N", help="passes over it (default: unknown)")
    add_price(parser)


def add_price(parser: argparse.ArgumentParser) -> None:
    """Prices of the user's own."""
    text = "your price an hour, repeatable (default: the catalogue's)"
    parser.add_argument("--price", type=price, action="append", default=[], metavar="GPU=USD", help=text)


# -- what they mean ----------------------------------------------------------------------------------------------------------------------


def gpus_asked(options: argparse.Namespace, otherwise: tuple[Gpu, ...] | None = None) -> tuple[list[Gpu], list[str]]:
    """The cards, and a note for each row with figures that the user measured: the answer rests on what only this user has."""
    gpus = [Gpu.named(name) for name in options.gpu] if options.gpu else list(defaults() if otherwise is None else otherwise)
    own = [f"GPU row {gpu.id} from {name} (measured {gpu.calibrated_on})" for name, gpu in zip(options.gpu or (), gpus) if gpu.calibrated_on]
    return gpus, own


def changes(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of the recipe that are given; refused here where no model could be trained so."""
    names = sorted(set(Training.model_fields) & set(vars(options)))
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if "frozen" in given:
        given["frozen"] = tuple(given["frozen"])
    Training(**given)
    return given


def subject(options: argparse.Namespace) -> Source | Tape:
    """What is trained: a workload by name, or a recording that was saved."""
    if options.model.endswith(".json.gz"):
        return Tape.load(options.model)
    source = Source.of(options.model, seq_len=options.seq_len, image_size=options.image_size, attention=options.attention, input=options.input)
    source.check()
    return source


def goal(options: argparse.Namespace, ladder: bool = False) -> Goal:
    """What is to be reached."""
    prices = tuple((Gpu.named(name).id, Price(usd, "yours")) for name, usd in options.price)
    rate = (getattr(options, "base_lr", None), getattr(options, "base_batch", None))
    return Goal(options.target_batch, options.samples, options.epochs, *rate, prices, ladder)


def tapes_for(asked: Source | Tape, options: argparse.Namespace, gpus: Sequence[Gpu]) -> list[Tape]:
    """The recording for each card, with a line of progress for each that is made."""
    if isinstance(asked, Tape):
        return [asked for _ in gpus]
    with watching("recordings") as watch:
        return tapes(asked, changes(options), gpus, options.cache, watch)


def changes_of(asked: Source | Tape, options: argparse.Namespace) -> dict[str, object]:
    """What the command line changes of the recipe; a recording has its own."""
    given = changes(options)
    return {} if isinstance(asked, Tape) else given


def saved(options: argparse.Namespace, gpus: Sequence[Gpu]) -> Source | Tape:
    """What is asked about; its recording, once that has been written where `--save` says."""
    asked = subject(options)
    if not options.save:
        return asked
    if len({gpu.kernel_family for gpu in gpus}) > 1:
        raise InvalidInputError("--save keeps one recording, and these GPUs need several; name GPUs of one architecture")
    tape = tapes_for(asked, options, gpus)[0]
    tape.save(options.save)
    return tape
