# SPDX-License-Identifier: Apache-2.0
"""CUDA's autocast, for device tensors that no CUDA build is there to cast.

The state (on or off, dtype, cache) is torch's own: `torch.autocast("cuda")` sets it. The rules below act on it, registered for
`AutocastPrivateUse1`, a dispatch key nothing else uses; they are inert unless `dispatching()` switches the key on.
Source: aten/src/ATen/autocast_mode.{h,cpp}.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

KEY = getattr(torch._C.DispatchKey, "AutocastPrivateUse1")  # noqa: B009 - torch's own stub leaves it out
KEYS = torch._C.DispatchKeySet(KEY)

# Operators whose floating-point inputs are cast to the autocast dtype (AT_FORALL_LOWER_PRECISION_FP).
LOWER_PRECISION = """
_convolution _convolution.deprecated conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d.input conv_transpose3d.input convolution
cudnn_convolution cudnn_convolution_transpose prelu addmm addmv addr matmul einsum mm mv linalg_vecdot linear addbmm baddbmm bmm chain_matmul
linalg_multi_dot _thnn_fused_lstm_cell _thnn_fused_gru_cell lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
_scaled_dot_product_flash_attention scaled_dot_product_attention
""".split()

# Operators whose inputs are cast to float32 (AT_FORALL_FP32).
FLOAT32 = """
acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar softplus
layer_norm native_layer_norm group_norm frobenius_norm.dim nuclear_norm nuclear_norm.dim cosine_similarity poisson_nll_loss
cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss kl_div l1_loss smooth_l1_loss huber_loss mse_loss margin_ranking_loss
multilabel_margin_loss soft_margin_loss triplet_margin_loss multi_margin_loss binary_cross_entropy_with_logits dist pdist cdist renorm
logsumexp upsample_nearest1d _upsample_nearest_exact1d upsample_nearest2d _upsample_nearest_exact2d upsample_nearest3d
_upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d _upsample_bilinear2d_aa upsample_trilinear3d upsample_bicubic2d
_upsample_bicubic2d_aa rms_norm
""".split()

_HEADER = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
CASTS_RMS_NORM = not _HEADER.is_file() or "_(rms_norm)" in _HEADER.read_text()  # which torch 2.11 does not

# Operators that compute in float32 by an output dtype, unless one is given (AT_FORALL_FP32_SET_OPT_DTYPE).
FLOAT32_OUTPUT = """
prod prod.dim_int softmax.int log_softmax.int cumprod cumsum linalg_vector_norm linalg_matrix_norm linalg_matrix_norm.str_ord sum sum.dim_IntList
""".split()

# The same, where the dtype-aware overload is another one (AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE).
FLOAT32_APPENDED = {"norm.Scalar": "norm.ScalarOpt_dtype", "norm.ScalarOpt_dim": "norm.ScalarOpt_dim_dtype"}

# Operators whose inputs are brought to the widest dtype among them (AT_FORALL_PROMOTE).
PROMOTE = "addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot scatter_add".split()

# Refused by CUDA's autocast with an error of its own.
BANNED = ("binary_cross_entropy",)

_cast_weights: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}


def clear_cast_weights() -> None:
    """Forget the weights cast so far, as leaving the outermost autocast context does."""
    _cast_weights.clear()


@contextmanager
def dispatching() -> Iterator[None]:
    """Switch the rules on for this thread."""
    with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set() | KEYS, torch._C._dispatch_tls_local_exclude_set().remove(KEY)):
        try:
            yield
        finally:
            clear_cast_weights()


def on_device(value: Any) -> bool:
    """Whether `value` is a tensor on the pretended device, whichever name of it is seen here."""
    return isinstance(value, torch.Tensor) and value.device.type in ("cuda", "meta")


def _eligible(value: Any) -> bool:
    return on_device(value) and value.is_floating_point() and value.dtype is not torch.float64


def cached_cast(value: Any, dtype: torch.dtype) -> Any:
    """Cast a device tensor as autocast does: float32 leaf weights once per context, everything else at every use."""
    if not _eligible(value) or value.dtype is dtype:
        return value
    cacheable = (
        dtype is not torch.float32
        and value.dtype is torch.float32
        and value.requires_grad
        and value.is_leaf
        and not value._is_view()
        and torch.is_autocast_cache_enabled()
    )
    if not cacheable:
        return value.to(dtype)
    if id(value) not in _cast_weights:
        _cast_weights[id(value)] = (value, value.to(dtype))
    return _cast_weights[id(value)][1]


def is_active() -> bool:
    """Whether `torch.autocast("cuda")` is on."""
    return torch.is_autocast_enabled("cuda")


def cast_lower(values: Any) -> Any:
    """Cast every eligible tensor in `values` to the autocast dtype, where autocast is on."""
    if not is_active():
        return values
    return cast_all(values, torch.get_autocast_dtype("cuda"))


def cast_all(values: Any, dtype: torch.dtype) -> Any:
    """Cast every eligible tensor, the last argument first: the order in which compilers evaluate autocast's C++ kernels."""
    leaves, structure = tree_flatten(values)
    cast = [cached_cast(leaf, dtype) for leaf in reversed(leaves)]
    return tree_unflatten(cast[::-1], structure)


def redispatch(operator: Any, *args: Any, **kwargs: Any) -> Any:
    """Call an operator past these rules, as autocast's own kernels do."""
    with torch._C._ExcludeDispatchKeyGuard(KEYS):
        return operator(*args, **kwargs)


def _lower(operator: Any) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = cast_lower((args, kwargs))
        return redispatch(operator, *args, **kwargs)

    return kernel


def _float32(operator: Any) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        if is_active():
            args, kwargs = cast_all((args, kwargs), torch.float32)
        return redispatch(operator, *args, **kwargs)

    return kernel


def _float32_output(operator: Any) -> Callable[..., Any]:
    names = [argument.name for argument in operator._schema.arguments]
    position = names.index("dtype")

    def kernel(*args: Any, **kwargs: Any) -> Any:
        if is_active() and _eligible(args[0]) and kwargs.get("dtype") is None and (len(args) <= position or args[position] is None):
            args, kwargs = args[:position], {**kwargs, "dtype": torch.float32}
        return redispatch(operator, *args, **kwargs)

    return kernel


def _float32_appended(operator: Any, target: Any) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        if not is_active() or not _eligible(args[0]):
            return redispatch(operator, *args, **kwargs)
        defaults = {a.name: a.default_value for a in target._schema.arguments if a.has_default_value()}
        given = {a.name: value for a, value in zip(operator._schema.arguments, args, strict=False)} | kwargs
        return redispatch(target, **{**defaults, **given, "dtype": torch.float32})

    return kernel


def _promote(operator: Any) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        if is_active():
            leaves = tree_leaves((args, kwargs))
            wide = any(_eligible(leaf) and leaf.dtype is torch.float32 for leaf in leaves)
            dtype = torch.float32 if wide else torch.get_autocast_dtype("cuda")
            args, kwargs = cast_all((args, kwargs), dtype)
        return redispatch(operator, *args, **kwargs)

    return kernel


def _banned(operator: Any) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        if is_active():
            raise RuntimeError(f"{operator} is unsafe to autocast; use binary_cross_entropy_with_logits")
        return redispatch(operator, *args, **kwargs)

    return kernel


def overload(name: str) -> Any:
    """The `torch.ops.aten` overload called `name`, e.g. `conv2d` or `sum.dim_IntList`."""
    packet, _, variant = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), variant or "default")


_library = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
_fallback = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")


def register(name: str, kernel: Callable[..., Any]) -> None:
    """Let `kernel` answer for the aten operator `name` while the rules are on."""
    _library.impl(name, kernel)


def register_all(elsewhere: tuple[str, ...]) -> None:
    """Register the rules of this module, but for the operators that have a kernel of their own `elsewhere`."""
    _fallback.fallback(torch.library.fallthrough_kernel)
    for names, rule in ((LOWER_PRECISION, _lower), (FLOAT32, _float32), (FLOAT32_OUTPUT, _float32_output), (PROMOTE, _promote), (BANNED, _banned)):
        for name in names:
            if name not in elsewhere:
                register(name, rule(overload(name)))
    for name, target in FLOAT32_APPENDED.items():
        register(name, _float32_appended(overload(name), overload(target)))
