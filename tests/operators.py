# SPDX-License-Identifier: Apache-2.0
"""Small programs, each about one operator and the gradient of it, whose allocations were recorded from the PyTorch CUDA allocator.

They run on whatever `torch` calls a CUDA device. Where an operand may lie otherwise than in rows, that is the case of interest.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def sequence(layout="rows", dtype=torch.float32):
    """(4, 64, 96), stored in rows, by feature, by position first, or as part of something wider."""
    if layout == "by feature":
        return torch.randn(4, 96, 64, device="cuda", dtype=dtype).transpose(1, 2).requires_grad_()
    if layout == "position first":
        return torch.randn(64, 4, 96, device="cuda", dtype=dtype).transpose(0, 1).requires_grad_()
    if layout == "part":
        return torch.randn(4, 64, 192, device="cuda", dtype=dtype)[..., :96].detach().requires_grad_()
    return torch.randn(4, 64, 96, device="cuda", dtype=dtype, requires_grad=True)


def image(layout="rows", dtype=torch.float16):
    """(4, 32, 16, 16), contiguous or channels-last."""
    tensor = torch.randn(4, 32, 16, 16, device="cuda", dtype=dtype)
    return (tensor.contiguous(memory_format=torch.channels_last) if layout == "channels last" else tensor).requires_grad_()


def parameter(like, *sizes):
    return torch.randn(*sizes, device="cuda", dtype=like.dtype, requires_grad=True)


def indices(*sizes):
    return torch.zeros(*sizes, dtype=torch.long, device="cuda")


def heads(x):
    return x.unflatten(2, (4, 24)).transpose(1, 2)


def attention(backend=None, **options):
    def call(x):
        with sdpa_kernel(backend) if backend else torch.enable_grad():
            return F.scaled_dot_product_attention(heads(x), heads(x), heads(x), **options)

    return call


def joined(x):
    """Merge heads, as every attention layer does."""
    return x.transpose(1, 2).flatten(2)


OVER_SEQUENCES = {
    "layer norm": lambda x: F.layer_norm(x, (96,), parameter(x, 96), parameter(x, 96)),
    "softmax": lambda x: F.softmax(x, -1),
    "log softmax": lambda x: F.log_softmax(x, -1),
    "linear": lambda x: F.linear(x, parameter(x, 48, 96), parameter(x, 48)),
    "linear without bias": lambda x: F.linear(x, parameter(x, 48, 96)),
    "linear over images": lambda x: F.linear(x.unflatten(1, (8, 8)).transpose(1, 2), parameter(x, 48, 96), parameter(x, 48)),
    "einsum": lambda x: torch.einsum("bld,bmd->blm", x, x),
    "gelu": F.gelu,
    "mish": F.mish,
    "log sigmoid": F.logsigmoid,
    "dropout": lambda x: F.dropout(x, 0.1, True),
    "largest": lambda x: x.max(-1)[0],
    "gather": lambda x: torch.gather(x, 1, indices(4, 16, 96)),
    "select": lambda x: x.index_select(1, indices(16)),
    "roll": lambda x: torch.roll(x, 3, 1),
    "cumulative sum": lambda x: x.cumsum(1),
    "cross entropy over positions": lambda x: F.cross_entropy(x.transpose(1, 2), indices(4, 64)),
    "cross entropy": lambda x: F.cross_entropy(x.flatten(0, 1), indices(256)),
    "attention with dropout": attention(SDPBackend.FLASH_ATTENTION, dropout_p=0.1),
    "causal attention": attention(is_causal=True),
    "attention, heads merged": lambda x: joined(attention()(x)),
    "multi-head attention": lambda x: nn.MultiheadAttention(96, 4, batch_first=True).to("cuda", x.dtype)(x, x, x, need_weights=True)[0],
}
OVER_IMAGES = {
    "batch norm": lambda x: F.batch_norm(x, None, None, parameter(x, 32), parameter(x, 32), True),
    "group norm": lambda x: F.group_norm(x, 8, parameter(x, 32), parameter(x, 32)),
    "layer norm of channels": lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (32,), parameter(x, 32), parameter(x, 32)).permute(0, 3, 1, 2),
    "max pooling": lambda x: F.max_pool2d(x, 3, 2, 1),
    "average pooling": lambda x: F.avg_pool2d(x, 2),
    "nearest neighbours": lambda x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bicubic": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "softmax of channels": lambda x: F.softmax(x, 1),
    "pixel loss": lambda x: F.cross_entropy(x, indices(4, 16, 16)),
}


def ctc(samples, labels=torch.long, lengths=torch.long, on="cpu"):
    """Labels of 40 for 199 frames; where samples are many, gradients of blanks are summed apart."""
    scores = torch.randn(199, samples, 32, device="cuda", requires_grad=True)
    targets = torch.ones(samples * 40, dtype=labels, device="cpu" if on == "cpu" and labels is torch.int32 else "cuda")
    frames, wanted = (torch.full((samples,), length, dtype=lengths).to(on) for length in (199, 40))
    whole(F.ctc_loss(scores.log_softmax(-1), targets, frames, wanted))


def filtered(x, dimension):
    spectrum = torch.fft.rfft(x, dim=dimension, norm="ortho")
    weight = torch.randn(spectrum.shape[1:], device="cuda", dtype=torch.complex64, requires_grad=True)
    whole(torch.fft.irfft(spectrum * weight, n=x.size(dimension), dim=dimension, norm="ortho"))


def packed(head, shared, dropout=0.0):
    """FlashAttention of 3 sequences, 700 positions each, one after another, or as a batch where `dropout` is given."""
    from flash_attn import flash_attn_func, flash_attn_varlen_func

    q, k, v = (torch.randn(2100, heads, head, device="cuda", dtype=torch.bfloat16, requires_grad=True) for heads in (8, shared, shared))
    if dropout:
        return flash_attn_func(*(x.unflatten(0, (3, 700)) for x in (q, k, v)), dropout, causal=True)
    offsets = torch.arange(0, 2101, 700, dtype=torch.int32).to("cuda")
    return flash_attn_varlen_func(q, k, v, offsets, offsets, 700, 700, causal=True)


ALONE = {
    "flash_attn, heads of 64": lambda: whole(packed(64, 8, 0.1)),
    "flash_attn, heads of 60, keys shared": lambda: whole(packed(60, 2, 0.1)),
    "flash_attn, heads of 224": lambda: whole(packed(224, 8, 0.1)),
    "flash_attn, sequences one after another": lambda: whole(packed(64, 8)),
    "flash_attn, sequences one after another, keys shared": lambda: whole(packed(64, 2)),
    "largest of embeddings": lambda: whole(F.embedding_bag(indices(16, 512), parameter(torch.zeros(()), 5000, 64), mode="max")),
    "sum of embeddings": lambda: whole(F.embedding(indices(16, 64), parameter(torch.zeros(()), 5000, 64)).sum(1)),
    "largest of all, rows": lambda: sequence().detach().max(),
    "largest of all, by feature": lambda: sequence("by feature").detach().max(),
    "least of columns": lambda: torch.randn(4096, 512, device="cuda").amin(0),
    "largest of columns in bfloat16": lambda: torch.randn(4096, 512, device="cuda", dtype=torch.bfloat16).amax(0),
    "Fourier transform of both dimensions": lambda: whole(torch.fft.fft(torch.fft.fft(sequence(), dim=-1), dim=-2).real),
    "Fourier transform at once": lambda: whole(torch.fft.fftn(sequence(), dim=(1, 2)).real),
    "Fourier filter of positions": lambda: filtered(sequence(), 1),
    "Fourier filter of features": lambda: filtered(sequence(), 2),
    "Fourier filter of images": lambda: whole(torch.fft.irfft2(torch.fft.rfft2(image(dtype=torch.float32), norm="ortho"), s=(16, 16), norm="ortho")),
    "Fourier filter of images, channels last": lambda: whole(torch.fft.irfft2(torch.fft.rfft2(image("channels last", torch.float32)), s=(16, 16))),
    "ctc loss, 19 samples": lambda: ctc(19),
    "ctc loss, 20 samples": lambda: ctc(20),
    "ctc loss by cuDNN, labels on the host": lambda: ctc(20, torch.int32),
    "ctc loss by cuDNN, labels on the device": lambda: ctc(20, torch.int32, torch.int32, "cuda"),
}


def programs():
    """Every program by name."""
    found = dict(ALONE)
    for name, operator in OVER_SEQUENCES.items():
        for layout in ("rows", "by feature", "position first", "part"):
            for dtype in (torch.float32, torch.bfloat16):
                found[f"{name}, {layout}, {str(dtype)[6:]}"] = lambda operator=operator, layout=layout, dtype=dtype: whole(operator(sequence(layout, dtype)))
                found[f"{name}, {layout}, {str(dtype)[6:]}, gradient by feature"] = lambda operator=operator, layout=layout, dtype=dtype: crosswise(
                    operator(sequence(layout, dtype))
                )
    for name, operator in OVER_IMAGES.items():
        for layout in ("rows", "channels last"):
            found[f"{name}, {layout}"] = lambda operator=operator, layout=layout: whole(operator(image(layout)))
            if name != "pixel loss":
                found[f"{name}, {layout}, half a gradient"] = lambda operator=operator, layout=layout: halves(operator, image(layout))
    return found


def whole(output):
    output.backward(torch.ones_like(output))


def crosswise(output):
    if output.dim() > 1:
        output = output.transpose(-1, -2)
    output.backward(torch.ones(output.shape, dtype=output.dtype, device="cuda"))


def halves(operator, x):
    whole(torch.cat([operator(x), operator(x)], 1))
