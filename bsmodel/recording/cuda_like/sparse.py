# SPDX-License-Identifier: Apache-2.0
"""Sparse gradients of embeddings: indices and values, as CUDA makes, keeps and applies them.

What sums their duplicates (`coalesce`, and with it SparseAdam, Adagrad and momentum) leaves as many rows as there are different indices, which hangs
on values: it is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from bsmodel.errors import UntraceableError

aten = torch.ops.aten
_AS_IT_IS = frozenset(
    (
        aten._indices.default,
        aten._values.default,
        aten._nnz.default,
        aten.is_coalesced.default,
        aten.sparse_dim.default,
        aten.dense_dim.default,
        aten.detach.default,
        aten._sparse_coo_tensor_with_dims_and_tensors.default,
    )
)
_SPARSE, _MEAN = 9, 1  # of the arguments of `_embedding_bag_backward`: whether the gradient is sparse; a mode


def concerns(func: Any, args: Any, given: Sequence[torch.Tensor]) -> bool:
    """Whether an operator takes or gives sparse tensors."""
    if any(tensor.layout is torch.sparse_coo for tensor in given):
        return True
    return func is aten._sparse_coo_tensor_with_dims_and_tensors.default or (func is aten._embedding_bag_backward.default and bool(args[_SPARSE]))


def run(func: Any, args: Any, kwargs: Any, recording: AbstractContextManager[Any], place: Callable[[], str]) -> Any:
    """The operator on the device; `recording` records the dense operators that it consists of. Raises `UntraceableError` for what hangs on values."""
    if func in _AS_IT_IS:
        return func(*args, **kwargs)
    if func is aten._embedding_bag_backward.default:
        with recording:
            return _embedding_bag_backward(*args)
    if func is aten.clone.default:  # the first gradient is kept as it is (torch/csrc/autograd/functions/accumulate_grad.h)
        return _made(args[0]._indices(), args[0]._values(), args[0].size())
    if func is aten.add_.Tensor and args[0].layout is torch.strided:  # rows are added in place (native/sparse/cuda/SparseCUDATensorMath.cu)
        return args[0]
    if func is aten.add_.Tensor and args[1].layout is torch.sparse_coo:  # the rows of both, one after another
        with recording:
            indices, values = torch.cat([args[0]._indices(), args[1]._indices()], 1), torch.cat([args[0]._values(), args[1]._values()])
        args[0].data = _made(indices, values, args[0].size())
        return args[0]
    name = func._schema.name.removeprefix("aten::")
    raise UntraceableError(
        f"{name} of a sparse gradient at {place()}: how many rows it has hangs on the indices; use an optimizer that adds sparse gradients as they are "
        "(SGD without momentum), or sparse=False"
    )


def _made(indices: torch.Tensor, values: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    kind = {"dtype": values.dtype, "layout": torch.sparse_coo, "device": values.device}
    return aten._sparse_coo_tensor_with_dims_and_tensors.default(1, len(size) - 1, list(size), indices, values, **kind)


def _embedding_bag_backward(gradient: Any, indices: Any, offsets: Any, bags: Any, sizes: Any, most: Any, rows: int, *rest: Any) -> torch.Tensor:
    """A row of the bag's gradient for each index, divided by the size of the bag for means (aten/src/ATen/native/EmbeddingBag.cpp, sparse backward)."""
    mode, weights = rest[1], rest[3]
    values = gradient.index_select(0, bags)
    if mode == _MEAN:
        values = values / sizes.index_select(0, bags).unsqueeze(1)
    if weights is not None:
        values = values * weights.unsqueeze(1)
    return _made(indices.reshape(1, -1), values, (rows, gradient.size(1)))
