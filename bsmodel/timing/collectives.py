# SPDX-License-Identifier: Apache-2.0
"""How long devices take to say something to one another: NCCL's own model, over the links that the catalogue has.

Source: NVIDIA/nccl, src/graph/tuning.cc (tables in `hardware/nccl.toml`); bus bandwidth as nccl-tests define it (doc/PERFORMANCE.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bsmodel.errors import UnknownNameError
from bsmodel.hardware import PROTOCOLS, Algorithm, End, Generation, Gpu, between_nodes, generation, link, nccl

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "broadcast", "reduce", "all-to-all")
_LL, _LL128, _SIMPLE = range(3)
_LL_SHARE = {"all-reduce": 1 / 4, "reduce": 1 / 4}  # of the bandwidth: half of every eight bytes is a flag, and a reduction reads as it writes
_LL_SHARE_ELSE, _LL128_SHARE, _LL128_SPARSE, _TREE_SHARE, _TREE_LL, _TREE_LL128, _CHAIN = 1 / 3, 0.92, 0.7, 0.92, 1 / 3.8, 7 / 9, 0.85
_PLATEAU_BYTES = 4096  # for each rank, from which on a ring over several nodes has a generation's plateau
_SWITCHED = 8  # ranks, of which the share of a link that the switch leaves is known
_SMALLEST = 64  # bytes, at which the tree's corrections begin
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Group:
    """Ranks that say something to one another: `per_node` in each of `nodes`, and how many such groups do so at once over a node's network."""

    ranks: int
    nodes: int = 1
    beside: int = 1

    @property
    def per_node(self) -> int:
        """Ranks in a node."""
        return -(-self.ranks // self.nodes)


def group_of(ranks: int, stride: int, per_node: int) -> Group:
    """Every `stride`-th of the devices, `per_node` of which stand in a node, next to next."""
    together = max(1, min(ranks, per_node // stride))
    return Group(ranks, -(-ranks // together), max(1, per_node // together))


@dataclass(frozen=True)
class _Links:
    """What carries a group's data: bytes per second within a node and, of this group's share, between nodes."""

    inside: float
    between: float
    latency: float  # of the network, in seconds, on top of what NCCL counts
    slower: float  # times NCCL's latencies
    nvlink: bool
    generation: Generation


def seconds(kind: str, size_bytes: ArrayLike, group: Group, gpu: Gpu, end: End = "likely") -> Array:
    """Seconds of a collective in which each rank has `size_bytes` of it before or when it is done, one or several sizes.

    The least over the algorithms and protocols that NCCL has for it, each `latency + bytes / rate`: rings, and in reductions to all trees and the
    NVLink switch. `end` is "likely", or "low" and "high" seconds, of the fastest and the slowest link that may be meant. All-to-all has no tuner:
    what leaves a rank for others, over its link, and over its part of the network. Zero for a group of one.
    Raises `UnknownNameError` for another kind, `InvalidInputError` for a card whose row does not say how it is linked.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of collective", kind, KINDS)
    sizes = np.asarray(size_bytes, np.float64)
    if group.ranks == 1:
        return np.zeros_like(sizes)
    links = _links(group, gpu, end)
    if kind == "all-to-all":
        return _exchanged(sizes, group, links)
    ways = [_ring(kind, sizes, group, links, protocol) for protocol in _protocols(group, links)]
    if kind == "all-reduce":
        ways += [_tree(sizes, group, links, protocol) for protocol in _protocols(group, links)]
        ways += list(_in_switch(sizes, group, links))
    return np.asarray(np.minimum.reduce(ways))


def bus_share(kind: str, ranks: int) -> float:
    """Bytes over the busiest link for each byte of a collective: bus bandwidth is so much times size over time (nccl-tests)."""
    return {"all-reduce": 2 * (ranks - 1) / ranks, "broadcast": 1.0, "reduce": 1.0}.get(kind, (ranks - 1) / ranks)


def _links(group: Group, gpu: Gpu, end: End) -> _Links:
    inside = link(gpu.interconnect, gpu.interconnect_bytes_per_s, gpu.id).at(end)
    if end == "low" and group.ranks == 2 and group.nodes == 1 and gpu.bridge_bytes_per_s:  # which nobody knows to be there
        inside = max(inside, link("NVLink bridge", gpu.bridge_bytes_per_s, gpu.id).likely)
    between = between_nodes(gpu.network, gpu.id).at(end) / group.beside if group.nodes > 1 else math.inf
    latency = gpu.network.latency_seconds if gpu.network else 0.0
    return _Links(inside, between, latency, nccl().slowest if end == "high" else 1.0, (gpu.interconnect or "").startswith("NVLink"), generation(gpu.capability))


def _protocols(group: Group, links: _Links) -> Iterator[int]:
    """LL128 needs NVLink."""
    for protocol in range(len(PROTOCOLS)):
        if protocol != _LL128 or links.nvlink or group.per_node == 1:
            yield protocol


def _ring(kind: str, sizes: Array, group: Group, links: _Links, protocol: int) -> Array:
    n, reduces = group.ranks, kind == "all-reduce"
    bus = min(links.inside, links.between) if group.per_node > 1 else links.between
    if protocol == _LL:
        share = _LL_SHARE.get(kind, _LL_SHARE["all-reduce"] if group.nodes > 1 else _LL_SHARE_ELSE)
        bus = min(bus * share, _most_ll(group, links))
    elif protocol == _LL128:
        bus *= _LL128_SHARE if group.per_node > 1 else _LL128_SPARSE
    steps = {"all-reduce": 2 * (n - 1), "broadcast": n, "reduce": n}.get(kind, n - 1)
    between = (2 if reduces else 1) * (group.nodes - 1)
    base, inside, over = _latencies(nccl().ring, links, protocol)
    if kind in ("broadcast", "reduce"):
        latency: Any = base + (inside if group.nodes == 1 else over)
    else:
        hop = inside if group.nodes == 1 else max(inside, nccl().posting_seconds * (3 if protocol == _SIMPLE else 1))
        latency = base + max(steps - between, 0) * hop + between * over
    if reduces and protocol == _SIMPLE and group.nodes > 1:
        latency = np.where(sizes >= _PLATEAU_BYTES * n, links.generation.plateau * latency, latency)
    return np.asarray(latency + sizes * steps / n / bus)


def _tree(sizes: Array, group: Group, links: _Links, protocol: int) -> Array:
    """Half of the data up each of two trees and down again; between two nodes they cross once each way, between more twice."""
    inside = links.inside * _TREE_SHARE * _CHAIN / 2 if group.per_node > 1 else math.inf
    rate = min(inside, links.between * _TREE_SHARE / (1 if group.nodes <= 2 else 2))
    if protocol == _LL:
        rate = min(rate * _TREE_LL, _most_ll(group, links) / 2)
    elif protocol == _LL128:
        rate *= _TREE_LL128 if group.nodes == 1 else 120 / 128
    base, hop, over = _latencies(nccl().tree, links, protocol)
    latency = base + 2 * ((group.per_node - 1) * hop + math.log2(group.nodes) * over)
    return np.asarray(latency + sizes / (rate * _corrected(sizes, protocol)))


def _corrected(sizes: Array, protocol: int) -> Array:
    """What is left of the rate of what goes up and down again, which fills its pipeline with large data only."""
    corrections = np.asarray(nccl().tree.corrections[protocol])
    power = np.log2(np.maximum(sizes, _SMALLEST) / _SMALLEST).astype(int)
    return np.where(power < len(corrections), corrections[np.minimum(power, len(corrections) - 1)], 1.0)


def _in_switch(sizes: Array, group: Group, links: _Links) -> Iterator[Array]:
    """Up into the switch and down again, with the corrections of trees, which the tuner does not make and cards show."""
    known, table = links.generation, nccl().nvls
    if not known.nvls_share or not links.nvlink or group.per_node < known.nvls_ranks:
        return
    shared = (1 + 1 / _SWITCHED) / (1 + 1 / group.per_node)  # each rank sends all it has, and what it summed
    rate = links.inside * known.nvls_share * (known.nvls_channels - 1) / known.nvls_channels * shared
    if group.nodes > 1:
        rate = min(rate, links.between / (1 if group.nodes == 2 else 2))
    levels = 2 * math.log2(group.nodes)
    yield np.asarray(links.slower * (table.seconds + levels * table.network_seconds) + levels * links.latency + sizes / (rate * _corrected(sizes, _SIMPLE)))


def _exchanged(sizes: Array, group: Group, links: _Links) -> Array:
    """What leaves a rank: for those in its node over its link, for the others over its part of the node's network."""
    n, near = group.ranks, group.per_node
    base, inside, over = _latencies(nccl().ring, links, _SIMPLE)
    within = sizes * (near - 1) / n / links.inside if near > 1 else np.zeros_like(sizes)
    across = sizes * (n - near) / n / (links.between / near) if group.nodes > 1 else np.zeros_like(sizes)
    return np.asarray(base + (over if group.nodes > 1 else inside) + np.maximum(within, across))


def _most_ll(group: Group, links: _Links) -> float:
    return links.generation.ll_bytes_per_s[min(group.nodes, 3) - 1]


def _latencies(table: Algorithm, links: _Links, protocol: int) -> tuple[float, float, float]:
    """Seconds of a collective anyway, of a hop within a node, and of one between nodes."""
    hops = table.hop_seconds
    inside = (hops.nvlink if links.nvlink else hops.pcie)[protocol]
    over = links.slower * hops.network[protocol] + links.latency * (2 if protocol == _SIMPLE else 1)  # which asks whether all has come
    return links.slower * table.base_seconds[protocol], links.slower * inside, over
