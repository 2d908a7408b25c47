# SPDX-License-Identifier: Apache-2.0
"""What a trial trains on: samples in an order that depends on the seed alone, so that every batch sees the same ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map
from torch.utils.data import default_collate

from bsmodel.errors import InvalidInputError
from bsmodel.workloads import Workload

_CHUNK = 1 << 16  # samples of an iterable that are shuffled together: none, they come as they come
SYNTHETIC = "synthetic batches: every one is the workload's own example, and losses say nothing of learning"


@dataclass(frozen=True)
class Data:
    """Samples to train on and, where there are any, to validate with. `what` says what they are, `remarks` what an answer rests on."""

    what: str
    batch: Callable[[Sequence[int]], Any]
    """The samples of these places of the order, together; places go on for ever."""
    length: int | None = None
    """Samples of an epoch; None where nobody knows."""
    validation: Callable[[], Iterator[tuple[int, Any]]] | None = None
    """Numbers of samples, and so many together, of all there are."""
    remarks: tuple[str, ...] = field(default=())


def synthetic(workload: Workload) -> Data:
    """The workload's own example batches."""
    return Data("synthetic", lambda places: workload.batch(len(places)), None, None, (SYNTHETIC,))


def of_samples(given: Any, seed: int, what: str = "", validation: Any = None, validation_batch: int = 64, split: float = 0.0) -> Data:
    """Samples of a `torch.utils.data.Dataset`, any sequence, a Hugging Face dataset, or an iterable that can be gone through again.

    Sequences are shuffled anew for each epoch, iterables come in their own order. `split` is the share of a sequence that is kept for validation
    where none is given. Raises `InvalidInputError` for what is none of these, or empty.
    """
    name = what or type(given).__name__
    if not hasattr(given, "__getitem__") or not hasattr(given, "__len__"):
        if not isinstance(given, Iterable):
            raise InvalidInputError(f"data is {type(given).__name__}; expected a torch.utils.data.Dataset, a sequence of samples or an iterable of them")
        stream = _Stream(given)
        return Data(f"{name}, an iterable", lambda places: collated(stream.at(places)), None, _validation(validation, validation_batch))
    held = round(len(given) * split) if validation is None else 0
    length = len(given) - held
    if length < 1:
        raise InvalidInputError(f"data has {len(given)} samples, of which {held} are for validation; expected at least one to train on")
    mixed = _order(len(given), 0, -1).tolist()  # which are held out depends on nothing
    training, kept = mixed[held:], mixed[:held]
    orders: dict[int, list[int]] = {}

    def index(place: int) -> int:
        epoch, within = divmod(place, length)
        if epoch not in orders:
            orders.clear() if len(orders) > 1 else None
            orders[epoch] = _order(length, seed, epoch).tolist()
        return int(training[orders[epoch][within]])

    own = [given[place] for place in kept] if held else validation
    text = f"{name}, {length:,} samples" + (f" and {held:,} for validation" if held else "")
    return Data(text, lambda places: collated(given[index(place)] for place in places), length, _validation(own, validation_batch))


def _order(length: int, seed: int, epoch: int) -> torch.Tensor:
    return torch.randperm(length, generator=torch.Generator().manual_seed((seed << 20) + epoch + 1))


def collated(samples: Iterable[Any]) -> Any:
    """Samples as one batch, by `torch.utils.data.default_collate`; lists of numbers, as Hugging Face datasets have them, count as tensors."""
    return default_collate([tree_map(lambda leaf: leaf, _tensors(sample)) for sample in samples])


def _tensors(sample: Any) -> Any:
    if isinstance(sample, Mapping):
        return {name: _tensors(value) for name, value in sample.items()}
    if isinstance(sample, list) and sample and isinstance(sample[0], (int, float)):
        return torch.tensor(sample)
    return sample


class _Stream:
    """Places of an iterable, gone through again where it ends; those that went by are gone."""

    def __init__(self, given: Iterable[Any]) -> None:
        self.given, self.source, self.next = given, iter(given), 0

    def at(self, places: Sequence[int]) -> list[Any]:
        found = []
        for place in places:
            if place < self.next:
                self.source, self.next = iter(self.given), 0
            for sample in itertools.islice(self._endless(), place - self.next, place - self.next + 1):
                found.append(sample)
            self.next = place + 1
        return found

    def _endless(self) -> Iterator[Any]:
        while True:
            empty = True
            for sample in self.source:
                empty = False
                yield sample
            self.source = iter(self.given)
            if empty and next(iter(self.given), None) is None:
                raise InvalidInputError("data is an iterable without samples, or one that can be gone through once; expected one that begins anew")


def _validation(given: Any, size: int) -> Callable[[], Iterator[tuple[int, Any]]] | None:
    if given is None:
        return None

    def batches() -> Iterator[tuple[int, Any]]:
        samples = (given[place] for place in range(len(given))) if hasattr(given, "__len__") else iter(given)
        while several := list(itertools.islice(samples, size)):
            yield len(several), collated(several)

    return batches


def of_text(path: Path, length: int, tokenizer: Any = None) -> list[dict[str, torch.Tensor]]:
    """The tokens of a text file in pieces of `length`, as a language model takes them: `input_ids` and `labels`; what is left at its end is not used.

    `tokenizer` is one of transformers; without it every byte is a token. Raises `InvalidInputError` for a file that cannot be read or is too short.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"cannot read data {str(path)!r}: {error.strerror}") from None
    tokens = (
        torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
        if tokenizer is None
        else torch.tensor(tokenizer(text.decode(errors="replace"))["input_ids"])
    )
    pieces = tokens[: len(tokens) // length * length].view(-1, length)
    if not len(pieces):
        raise InvalidInputError(f"data {str(path)!r} has {len(tokens)} tokens; expected at least the {length} of one sample")
    return [{"input_ids": piece, "labels": piece.clone()} for piece in pieces]
