# SPDX-License-Identifier: Apache-2.0
"""What a trial trains on: samples in an order that depends on the seed alone, so that every batch sees the same ones."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset, default_collate

from bsmodel.errors import InvalidInputError
from bsmodel.units import finite, whole
from bsmodel.workloads import Workload

SYNTHETIC = "synthetic batches: every one is the workload's own example, and losses say nothing of learning"
_HELD_OUT = -1  # the order that says which samples are kept for validation: that of no epoch, and of one seed


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
    remarks: tuple[str, ...] = ()


def synthetic(workload: Workload) -> Data:
    """The workload's own example batches."""
    return Data("synthetic", lambda places: workload.batch(len(places)), remarks=(SYNTHETIC,))


def of_samples(given: Any, seed: int, validation: Any = None, validation_batch: int = 64, split: float = 0.0) -> Data:
    """Samples of a `torch.utils.data.Dataset`, any sequence, a Hugging Face dataset, or an iterable that can be gone through again.

    Sequences are shuffled anew for each epoch, iterables come in their own order. `split` is the share of a sequence that is kept for validation
    where none is given. Raises `InvalidInputError` for what is none of these, or empty, a share of which not one sample is kept, and one beside `validation`.
    """
    name, split = getattr(given, "what", type(given).__name__), _share(split)
    if split and validation is not None:
        raise InvalidInputError(f"a split of {split:g} and samples to validate with are both given; give one")
    if validation is not None:
        _is_sequence(validation, "validation")
    if not _is_sequence(given, "data"):
        if split:
            raise InvalidInputError(f"data is {name}, an iterable, of which no share can be kept for validation; give samples to validate with instead")
        stream = _Stream(given)
        return Data(f"{name}, an iterable", lambda places: collated(stream.at(places)), None, _validation(validation, validation_batch))
    held = round(len(given) * split)
    if split and not held and len(given):
        raise InvalidInputError(f"a split of {split:g} of {len(given):,} samples keeps none to validate with; give at least {1 / len(given):.2g}")
    length = len(given) - held
    if length < 1:
        raise InvalidInputError(f"data has {len(given)} samples, of which {held} are for validation; expected at least one to train on")
    mixed = _order(len(given), 0, _HELD_OUT)
    training = mixed[held:]
    order = functools.lru_cache(maxsize=2)(lambda epoch: _order(length, seed, epoch))  # a batch may lie in two epochs

    def index(place: int) -> int:
        epoch, within = divmod(place, length)
        return training[order(epoch)[within]]

    kept = Subset(given, mixed[:held]) if held else validation
    apart = f"{len(kept):,}" if hasattr(kept, "__len__") else "others"
    text = f"{name}, {length:,} samples" + ("" if kept is None else f" and {apart} for validation")
    return Data(text, lambda places: collated(given[index(place)] for place in places), length, _validation(kept, validation_batch))


def _share(split: float) -> float:
    if finite("split", split, least=0) >= 1:
        raise InvalidInputError(f"split is {split:g}; expected a share from 0 up to 1")
    return split


def _is_sequence(given: Any, what: str) -> bool:
    """Whether samples are had by their places; raises `InvalidInputError` where they cannot be gone through either, or once only."""
    if isinstance(given, DataLoader):
        raise InvalidInputError(f"{what} is a DataLoader, which makes batches of its own; give its dataset")
    known = isinstance(given, Iterable) or (hasattr(given, "__getitem__") and hasattr(given, "__len__"))
    if not known or isinstance(given, (str, bytes, Mapping)):
        raise InvalidInputError(f"{what} is {type(given).__name__}; expected a torch.utils.data.Dataset, a sequence of samples or an iterable of them")
    if isinstance(given, Iterator):
        raise InvalidInputError(f"{what} is {type(given).__name__}, which can be gone through once only; expected an iterable that begins anew for each run")
    return hasattr(given, "__getitem__") and hasattr(given, "__len__") and not isinstance(given, IterableDataset)


def _order(length: int, seed: int, epoch: int) -> list[int]:
    order: list[int] = torch.randperm(length, generator=torch.Generator().manual_seed((seed << 20) + epoch + 1)).tolist()
    return order


def collated(samples: Iterable[Any]) -> Any:
    """Samples as one batch, by `torch.utils.data.default_collate`; lists of numbers, as Hugging Face datasets have them, count as tensors.

    Raises `InvalidInputError` for samples that do not go together, such as texts of several lengths.
    """
    found = [_tensors(sample) for sample in samples]
    try:
        return default_collate(found)
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise InvalidInputError(f"samples do not go together as a batch: {str(error).splitlines()[0]}") from None


def _tensors(sample: Any) -> Any:
    if isinstance(sample, Mapping):
        return {name: _tensors(value) for name, value in sample.items()}
    if type(sample) is tuple:
        return tuple(_tensors(value) for value in sample)
    if isinstance(sample, list) and sample and isinstance(sample[0], (int, float)):
        return torch.tensor(sample)
    return sample


class _Stream:
    """Places of an iterable, gone through again where it ends; those that went by are gone."""

    def __init__(self, given: Iterable[Any]) -> None:
        self.given, self.source, self.next = given, iter(given), 0

    def at(self, places: Sequence[int]) -> list[Any]:
        found: list[Any] = []
        for place in places:
            found += itertools.islice(self._endless(), place - self.next, place - self.next + 1)
            self.next = place + 1
        return found

    def _endless(self) -> Iterator[Any]:
        without = 0
        while without < 2:  # one may have ended just before
            for sample in self.source:
                without = 0
                yield sample
            self.source, without = iter(self.given), without + 1
        raise InvalidInputError("data is an iterable without samples, or one that can be gone through once; expected one that begins anew")


def _validation(given: Any, size: int) -> Callable[[], Iterator[tuple[int, Any]]] | None:
    if given is None:
        return None

    def batches() -> Iterator[tuple[int, Any]]:
        samples = (given[place] for place in range(len(given))) if _is_sequence(given, "validation") else iter(given)
        while several := list(itertools.islice(samples, size)):
            yield len(several), collated(several)

    return batches


@dataclass(frozen=True)
class Text:
    """Pieces of a text as a language model takes them; `what` says which text, and what its tokens are."""

    pieces: torch.Tensor
    what: str

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.pieces[place], "labels": self.pieces[place]}


def of_text(path: Path, length: int, tokenizer: Any = None) -> Text:
    """The tokens of a text file in pieces of `length`, as a language model takes them: `input_ids` and `labels`; what is left at its end is not used.

    `tokenizer` is one of transformers; without it every byte is a token. Raises `InvalidInputError` for a file that cannot be read or is too short.
    """
    length = whole("tokens of a sample", length)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"cannot read data {str(path)!r}: {error.strerror}") from None
    ids = np.frombuffer(text, np.uint8) if tokenizer is None else tokenizer(text.decode(errors="replace"))["input_ids"]
    tokens = torch.from_numpy(np.array(ids, np.int64))
    pieces = tokens[: len(tokens) // length * length].view(-1, length)
    if not len(pieces):
        raise InvalidInputError(f"data {str(path)!r} has {len(tokens)} tokens; expected at least the {length} of one sample")
    return Text(pieces, f"{path.name}, {'a token for each byte' if tokenizer is None else 'tokens of its own tokenizer'}")
