# SPDX-License-Identifier: Apache-2.0
"""Transformers as mmsegmentation 0.x builds them, in plain PyTorch, with attention as PyTorch of the time wrote it out: SegFormer and ViT."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases.old_torch import softmax

DEPTHS = {0: (2, 2, 2, 2), 1: (2, 2, 2, 2), 2: (3, 4, 6, 3), 3: (3, 4, 18, 3), 4: (3, 8, 27, 3), 5: (3, 6, 40, 3)}
HEADS, SHRINK = (1, 2, 5, 8), (8, 4, 2, 1)  # of the four stages: heads, and how much coarser keys and values are


def _image(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], *size)


def _tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2).contiguous()


def _dropped(x: Tensor, rate: float) -> Tensor:
    """Drop whole samples."""
    if rate == 0.0:
        return x
    return x.div(1 - rate) * torch.rand(x.shape[0], 1, 1, dtype=x.dtype, device=x.device).add_(1 - rate).floor_()


class Attention(nn.Module):
    """`nn.MultiheadAttention`, tokens first, whose keys and values are of a smaller image."""

    def __init__(self, width: int, heads: int, shrink: int, old: bool) -> None:
        super().__init__()
        self.heads, self.old = heads, old
        self.project = nn.ParameterDict({"weight": nn.Parameter(torch.empty(3 * width, width)), "bias": nn.Parameter(torch.empty(3 * width))})
        self.out = nn.Linear(width, width)
        self.shrink = nn.Conv2d(width, width, shrink, shrink) if shrink > 1 else None
        self.norm = nn.LayerNorm(width) if shrink > 1 else None

    def _split(self, x: Tensor) -> Tensor:
        return x.contiguous().view(x.shape[0], x.shape[1] * self.heads, x.shape[2] // self.heads).transpose(0, 1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        weight, bias, width = self.project["weight"], self.project["bias"], x.shape[2]
        if self.shrink is not None and self.norm is not None:
            fewer = self.norm(_tokens(self.shrink(_image(x, size)))).transpose(0, 1)
            query = F.linear(x.transpose(0, 1), weight[:width], bias[:width])
            key, value = F.linear(fewer, weight[width:], bias[width:]).chunk(2, -1)
        else:
            query, key, value = F.linear(x.transpose(0, 1), weight, bias).chunk(3, -1)
        query, key, value = self._split(query * (width // self.heads) ** -0.5), self._split(key), self._split(value)
        weights = softmax(torch.bmm(query, key.transpose(1, 2)), -1, self.old)
        found = torch.bmm(weights, value).transpose(0, 1).contiguous().view(x.shape[1], x.shape[0], width)
        return self.out(found).transpose(0, 1)


class Layer(nn.Module):
    """Attention and the feed-forward network with a depthwise convolution in it."""

    def __init__(self, width: int, heads: int, shrink: int, drop: float, old: bool) -> None:
        super().__init__()
        self.drop, inner = drop, 4 * width
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, shrink, old)
        depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.feed = nn.Sequential(nn.Conv2d(width, inner, 1), depthwise, nn.GELU(), nn.Conv2d(inner, width, 1))

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = x + _dropped(self.attention(self.first(x), size), self.drop)
        return x + _dropped(_tokens(self.feed(_image(self.second(x), size))), self.drop)


class MixTransformer(nn.Module):
    """MiT-B0 to B5; the output of every stage."""

    def __init__(self, number: int, old: bool = True) -> None:
        super().__init__()
        base, depths = 32 if number == 0 else 64, DEPTHS[number]
        self.widths = [base, 2 * base, 5 * base, 8 * base]
        self.embeds, self.norms, self.stages, self.ends = nn.ModuleList(), nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        before, done = 3, 0
        for stage, (width, count) in enumerate(zip(self.widths, depths, strict=True)):
            kernel, stride = (7, 4) if stage == 0 else (3, 2)
            self.embeds.append(nn.Conv2d(before, width, kernel, stride, kernel // 2))
            self.norms.append(nn.LayerNorm(width))
            drops = [0.1 * (done + layer) / (sum(depths) - 1) for layer in range(count)]
            self.stages.append(nn.ModuleList(Layer(width, HEADS[stage], SHRINK[stage], drop, old) for drop in drops))
            self.ends.append(nn.LayerNorm(width))
            before, done = width, done + count

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for embed, norm, stage, end in zip(self.embeds, self.norms, self.stages, self.ends, strict=True):
            x = embed(x)
            size = (x.shape[2], x.shape[3])
            x = norm(x.flatten(2).transpose(1, 2))
            layers: Any = stage
            for layer in layers:
                x = layer(x, size)
            x = _image(end(x), size)
            found.append(x)
        return found


class Mixer(nn.Module):
    """The head: every level to 256 channels and to the size of the first, then one convolution over all."""

    def __init__(self, widths: list[int], classes: int) -> None:
        super().__init__()
        self.sides = nn.ModuleList(self._conv(width, 256) for width in widths)
        self.fuse, self.classify = self._conv(1024, 256), nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(256, classes, 1))

    @staticmethod
    def _conv(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))

    def forward(self, xs: list[Tensor]) -> Tensor:
        size = xs[0].shape[2:]
        found = [F.interpolate(side(x), size, mode="bilinear", align_corners=False) for side, x in zip(self.sides, xs, strict=True)]
        return self.classify(self.fuse(torch.cat(found, 1)))


class Plain(nn.Module):
    """A layer of ViT: attention and a network of two linear layers."""

    def __init__(self, width: int, heads: int, drop: float, old: bool) -> None:
        super().__init__()
        self.first, self.second, self.drop = nn.LayerNorm(width), nn.LayerNorm(width), drop
        self.attention = Attention(width, heads, 1, old)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + _dropped(self.attention(self.first(x), (0, 0)), self.drop)
        return x + _dropped(self.feed(self.second(x)), self.drop)


class ViT(nn.Module):
    """ViT of 16 x 16 patches and 12 layers, every third of which is returned as an image; `levels` makes four sizes of them."""

    def __init__(self, width: int, patches: int, drop: float, levels: bool, old: bool) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 16, 16)
        self.first, self.places = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, patches + 1, width))
        self.layers = nn.ModuleList(Plain(width, width // 64, drop * layer / 11, old) for layer in range(12))
        self.sides = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(4 * levels))
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(4 * levels))

    def forward(self, x: Tensor) -> list[Tensor]:
        x, found = self.embed(x), []
        size = (x.shape[2], x.shape[3])
        x = torch.cat((self.first.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)), 1) + self.places
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number % 3 == 2:
                found.append(_image(x[:, 1:], size).contiguous())
        found = [side(level) for side, level in zip(self.sides, found, strict=True)] if self.sides else found
        sizes = zip(self.smooth, found, (4.0, 2.0, 1.0, 0.5), strict=True) if self.sides else ()
        return [smooth(F.interpolate(level, scale_factor=scale, mode="bilinear")) for smooth, level, scale in sizes] or found
