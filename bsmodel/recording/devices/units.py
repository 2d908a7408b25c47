# SPDX-License-Identifier: Apache-2.0
"""What is sharded and gathered together, as plain PyTorch's examples, accelerate and torchtitan group modules.

Sources: accelerate/utils/fsdp_utils.py (1.15), `fsdp2_prepare_model`; torchtitan/distributed/fsdp.py, `apply_fsdp_to_decoder`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from bsmodel.errors import InvalidInputError
from bsmodel.parallel import Parallel
from bsmodel.recording import placement


class Unit(NamedTuple):
    """Modules that are gathered together, and whether that is undone after forward: None is `fully_shard`'s own choice.

    The whole weights of those in `held` are let go of once all is sharded.
    """

    modules: tuple[torch.nn.Module, ...]
    reshard: bool | None
    held: tuple[torch.nn.Module, ...] = ()


class _Ends(NamedTuple):
    """What stands before and after the blocks of a language model, as far as it says so."""

    embedding: Any
    norm: Any
    head: Any

    @property
    def tied(self) -> bool:
        """Whether embedding and head have one weight."""
        weight = getattr(self.embedding, "weight", None)
        return weight is not None and weight is getattr(self.head, "weight", None)


def units(model: torch.nn.Module, parallel: Parallel) -> list[Unit]:
    """Modules in the order in which they are sharded, the whole model last."""
    return [*_UNITS.get(parallel.preset, _torch)(model, parallel), Unit((model,), parallel.reshard_after_forward if parallel.preset == "torch" else None)]


def _torch(model: torch.nn.Module, parallel: Parallel) -> list[Unit]:
    return [Unit((block,), parallel.reshard_after_forward) for block in blocks(model, parallel.wrap)]


def _accelerate(model: torch.nn.Module, parallel: Parallel) -> list[Unit]:
    reshard, ends, each = parallel.reshard_after_forward is not False, _ends(model), [*_upwards(model, blocks(model, parallel.wrap))]
    if any(ends.embedding is part for block in each for part in block.modules()):
        names = ", ".join(dict.fromkeys(type(block).__name__ for block in each))
        raise InvalidInputError(
            f"the embedding stands in a block that is sharded ({names}), which accelerate then fails to shard; give parallel wrap without that class"
        )
    found = [Unit((block,), reshard) for block in each]
    if ends.embedding is not None and not ends.tied:
        found.append(Unit((ends.embedding,), reshard, (ends.embedding,)))
    tail = tuple(part for part in (ends.norm, ends.embedding if ends.tied else None, ends.head) if part is not None)
    return [*found, *([Unit(tail, False, () if ends.head is None else (ends.head,))] if tail else [])]


def _torchtitan(model: torch.nn.Module, parallel: Parallel) -> list[Unit]:
    reshard, ends = parallel.reshard_after_forward is not False, _ends(model)
    tail = tuple(part for part in (ends.embedding if ends.tied else None, ends.norm, ends.head) if part is not None)
    found = [Unit((ends.embedding,), reshard)] if ends.embedding is not None and not ends.tied else []
    if ends.norm is not None and ends.head is not None:
        found.append(Unit(tail, parallel.reshard_after_forward is True))
    return [*found, *(Unit((block,), reshard) for block in _upwards(model, blocks(model, parallel.wrap)))]


_UNITS: dict[str, Callable[[torch.nn.Module, Parallel], list[Unit]]] = {"accelerate": _accelerate, "torchtitan": _torchtitan}


def _ends(model: Any) -> _Ends:
    """As transformers' models name them; of norms the last one beside the blocks."""
    prefix = getattr(model, "base_model_prefix", "")
    base = getattr(model, prefix, None) if prefix else model
    norms = [part for part in base.children() if "Norm" in type(part).__name__] if isinstance(base, torch.nn.Module) else []
    first, last = (getattr(model, f"get_{side}_embeddings", lambda: None)() for side in ("input", "output"))
    return _Ends(first, norms[-1] if norms else None, last)


def _upwards(part: torch.nn.Module, chosen: list[torch.nn.Module]) -> Iterator[torch.nn.Module]:
    """The chosen parts in the model's order, but each after its own parts."""
    for child in part.children():
        yield from _upwards(child, chosen)
    if any(part is each for each in chosen):
        yield part


def blocks(model: torch.nn.Module, names: tuple[str, ...]) -> list[torch.nn.Module]:
    """Modules of these classes, else of those that a transformers model does not split, else the outermost repeated ones; innermost first."""
    wanted = set(names or getattr(model, "_no_split_modules", None) or ())
    found = [module for module in model.modules() if type(module).__name__ in wanted][::-1]
    if names and not found:
        known = ", ".join(sorted({type(module).__name__ for module in model.modules()}))
        raise InvalidInputError(f"parallel wrap {', '.join(names)}: the model has no module of such a class; it has {known}")
    return found or placement.repeated_blocks(model)
