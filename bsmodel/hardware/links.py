# SPDX-License-Identifier: Apache-2.0
"""What connects cards in a node and nodes in a cluster, and NCCL's own model of how long it takes over such links: `nccl.toml`, `networks.toml`."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from bsmodel.errors import InvalidInputError, UnknownNameError
from bsmodel.hardware.rows import Count, HardwareRow, Rate, Source, capability_of, catalogue_folder, read

Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]
ByProtocol = Annotated[tuple[Seconds, ...], Field(strict=False, min_length=3, max_length=3)]
PROTOCOLS = ("LL", "LL128", "Simple")
End = Literal["likely", "low", "high"]  # of seconds


class Hops(HardwareRow):
    """Seconds from one rank to the next, by protocol."""

    nvlink: ByProtocol
    """Over NVLink."""
    pcie: ByProtocol
    """Over PCI Express."""
    network: ByProtocol
    """From node to node."""


class Algorithm(HardwareRow):
    """A way that data take through the ranks."""

    base_seconds: ByProtocol
    """What every collective takes."""
    hop_seconds: Hops
    """What every hop takes."""
    corrections: tuple[Annotated[tuple[Share, ...], Field(strict=False)], ...] = Field(default=(), strict=False)
    """Of its rate, for each protocol, by powers of two from 64 bytes on; all of it where there is none."""


class InSwitch(HardwareRow):
    """Reductions in the NVLink switch."""

    seconds: Seconds
    """What one takes within a node."""
    network_seconds: Seconds
    """What every level of a tree of nodes takes on top."""


class Generation(HardwareRow):
    """What cards of a compute capability and later ones do."""

    capability: str = Field(pattern=r"^\d+\.\d$")
    """The first that does."""
    ll_bytes_per_s: ByProtocol
    """Most that the protocol LL reaches on one node, two, and more."""
    nvls_share: Share
    """Of the link's bandwidth in reductions in the switch; 0 where there are none."""
    nvls_channels: Count
    """In how many channels, of which one is lost."""
    nvls_ranks: Count
    """From how many cards in a node on; fewer go by rings and trees."""
    plateau: Annotated[float, Field(ge=1)]
    """Times the latency of a reduction by a ring over several nodes, once it is not small."""


class Attained(HardwareRow):
    """The share of a bandwidth that is reached."""

    interconnects: tuple[str, ...] = Field(default=(), strict=False)
    """Patterns of the interconnects it holds for, with `*`; the first row that matches counts."""
    share: Share
    """Likely."""
    low: Share
    """At least."""
    high: Share
    """At most."""

    def of(self, bytes_per_s: float, end: End) -> float:
        """Bytes per second, likely, or those of the most or the least seconds."""
        return bytes_per_s * {"likely": self.share, "low": self.high, "high": self.low}[end]


class Nccl(HardwareRow):
    """NCCL's model of a collective's time."""

    ring: Algorithm
    """From each rank to the next, all round."""
    tree: Algorithm
    """Up two trees and down again; reductions to all only."""
    nvls: InSwitch
    """By the switch; reductions to all only."""
    slowest: Annotated[float, Field(ge=1)]
    """How many times as long a latency may be."""
    posting_seconds: Seconds
    """What a host takes to hand a message to the network, of which the protocol Simple sends three."""
    generations: tuple[Generation, ...] = Field(strict=False)
    """By compute capability, ascending."""
    links: tuple[Attained, ...] = Field(strict=False)
    """What is left of a link."""
    network: Attained
    """What is left of a network card's bandwidth."""
    sources: tuple[Source, ...] = Field(strict=False)
    """Where they come from."""


class Network(HardwareRow):
    """What connects nodes, as they are rented or bought."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", examples=["aws-p5"])
    """Name."""
    name: str
    """What it is called where it is rented."""
    cloud: Annotated[str, Field(pattern=r"^[^A-Z]+$")] | None = None
    """Whose nodes they are, lower case, as offers name it; none where they are of several, or bought."""
    kind: str
    """Such as InfiniBand, EFA, RoCE or TCP."""
    gpus_per_node: Count
    """Cards in a node."""
    nics: Count
    """Network cards in a node, as many as ports."""
    nic_bytes_per_s: Rate
    """Bandwidth of each in one direction."""
    gpus: tuple[str, ...] = Field(default=(), strict=False)
    """Cards of the catalogue that it is rented with."""
    latency_seconds: Seconds = 0.0
    """What a message takes on top of what NCCL counts for any network."""
    sources: tuple[Source, ...] = Field(strict=False, min_length=1)
    """Where the figures come from."""

    @property
    def bytes_per_s(self) -> float:
        """Of a node, in one direction."""
        return self.nics * self.nic_bytes_per_s


class _Networks(HardwareRow):
    networks: tuple[Network, ...] = Field(strict=False)


class Band(NamedTuple):
    """Bytes per second in one direction: likely, fastest and slowest."""

    likely: float
    fast: float
    slow: float

    def at(self, end: End) -> float:
        """Those of likely, the fewest ("low") or the most ("high") seconds."""
        return {"likely": self.likely, "low": self.fast, "high": self.slow}[end]


@functools.cache
def nccl() -> Nccl:
    """The tables of `nccl.toml`."""
    return read(Nccl, catalogue_folder() / "nccl.toml")


@functools.cache
def networks() -> tuple[Network, ...]:
    """The networks of the catalogue."""
    return read(_Networks, catalogue_folder() / "networks.toml").networks


def network_named(name: str) -> Network:
    """A network of the catalogue by its id, or the one in a TOML file; `InvalidInputError` for what is neither."""
    if name.lower().endswith(".toml"):
        return read(Network, Path(name))
    known = {network.id: network for network in networks()}
    if name.lower() not in known:
        raise UnknownNameError("network", name, known)
    return known[name.lower()]


def generation(capability: tuple[int, int]) -> Generation:
    """What cards of a compute capability do: as the latest that is not after it."""
    *_, found = (row for row in nccl().generations if capability_of(row.capability) <= capability or row is nccl().generations[0])
    return found


def link(interconnect: str | None, bytes_per_s: float | None, gpu: str) -> Band:
    """What a link between the cards of a node carries; `InvalidInputError` where the card's row does not say how it is linked."""
    if interconnect is None or bytes_per_s is None:
        raise InvalidInputError(f"{gpu} has no interconnect and interconnect_bytes_per_s; the time of several devices needs them, add them to the row")
    for row in nccl().links:
        if any(fnmatch.fnmatchcase(interconnect, pattern) for pattern in row.interconnects):
            return _band(row, [bytes_per_s])
    raise InvalidInputError(f"{gpu} is linked by {interconnect!r}, of which no rate is known; expected one like {_expected()}")


def between_nodes(network: Network | None, gpu: str) -> Band:
    """What a node of these cards sends in one direction: by the network that is given, else by those that the card is rented with, or all of them."""
    if network is not None:
        return _band(nccl().network, [network.bytes_per_s])
    rented = [row.bytes_per_s for row in networks() if gpu in row.gpus] or [row.bytes_per_s for row in networks() if not row.gpus]
    return _band(nccl().network, rented)


def _band(row: Attained, bytes_per_s: Iterable[float]) -> Band:
    found = sorted(bytes_per_s)
    return Band(row.of(found[len(found) // 2], "likely"), row.of(found[-1], "low"), row.of(found[0], "high"))


def _expected() -> str:
    return ", ".join(name for row in nccl().links for name in row.interconnects)
