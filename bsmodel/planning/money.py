# SPDX-License-Identifier: Apache-2.0
"""Hours and money of a plan, and which of several plans is the cheapest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from bsmodel.errors import InvalidInputError
from bsmodel.hardware import Gpu
from bsmodel.memory import Fit
from bsmodel.parallel import GPUS_PER_NODE
from bsmodel.planning.splits import Split
from bsmodel.prices import Price, cheapest, instances_for
from bsmodel.tape import Tape
from bsmodel.timing import StepTime, curve, knee, nodes, per_node, step_time


@dataclass(frozen=True)
class Timing:
    """How long the plan takes on its GPUs, and what that costs; what needs samples, epochs or a price is None without them.

    `step` is one optimizer step on one device, which waits for the others where it must; the work is taken to be shared evenly. `rented` are the cards
    that are paid: all of each instance where the price is of one; else, where there are several nodes, or a network that is rented with them, all of
    each node. `unpriced` says why offers that were given are none for this plan. `knee` is the smallest micro-batch with nine tenths of the best
    throughput, which `fastest_batch` has; `mfu` is a share of the card's rate, `hours` and `cost_usd` are of the run, `usd_per_million` of a million samples.
    """

    step: StepTime[int, float]
    samples_per_s: float
    tokens_per_s: float
    mfu: float
    knee: int  # the smallest micro-batch with nine tenths of the best throughput, of 512 evenly spread up to the largest, as often as the recipe says
    fastest_batch: int  # of those the one with the best throughput
    hours_per_epoch: float | None
    hours: float | None
    price: Price | None
    cost_usd: float | None
    usd_per_million: float | None  # samples
    rented: int
    unpriced: str = ""


def catalogue_price(gpu: Gpu) -> Price | None:
    """The price in the card's row, with its source and day, or None where it has none."""
    source = gpu.source_of("price_usd_per_hour")
    if gpu.price_usd_per_hour is None or source is None:
        return None
    return Price(gpu.price_usd_per_hour, f"{source.source}, {source.checked}")


def why_untimed(tape: Tape, gpu: Gpu) -> str:
    """Why no time can be predicted on this card, or nothing."""
    try:
        step_time(tape, gpu, 1)
    except InvalidInputError as error:
        return str(error)
    return ""


def timing_of(fit: Fit, chosen: Split, per_epoch: int | None, total: int | None, prices: Sequence[Price] | None) -> Timing:
    step = step_time(fit.tape, fit.gpu, chosen.micro_batch, chosen.accumulation)
    times = curve(fit.tape, fit.gpu, fit.batch)
    seconds = step.seconds
    hours = seconds * total / 3600 if total is not None else None
    samples_per_s = step.samples_per_s * chosen.replicas
    price, unpriced = price_among(prices, fit.tape, fit.gpu, chosen.devices)
    paid = rented(fit.tape, fit.gpu, chosen.devices, price)
    return Timing(
        step,
        samples_per_s,
        samples_per_s * step.tokens_per_sample,
        step.mfu,
        knee(times),
        int(times.batch[np.argmax(times.samples_per_s)]),
        seconds * per_epoch / 3600 if per_epoch is not None else None,
        hours,
        price,
        hours * price.usd_per_hour * paid if hours is not None and price is not None else None,
        price.usd_per_hour * paid / samples_per_s * 1e6 / 3600 if price is not None else None,
        paid,
        unpriced,
    )


def price_among(prices: Sequence[Price] | None, tape: Tape, gpu: Gpu, devices: int) -> tuple[Price | None, str]:
    """Of these the cheapest for so many devices of this step, or why there is none.

    An instance has to hold a whole node of the step, and of the network that its nodes are rented with, and be of the network's cloud: seconds are those
    of devices that stand together there. A price that says no cloud is of any.
    """
    if prices is None:
        return None, ""
    if not prices:
        return None, "there is no such offer"
    own = gpu.network.cloud if gpu.network else None
    there = [price for price in prices if own in (None, price.cloud) or price.cloud is None]
    if not there:
        return None, f"the offers are of {', '.join(sorted({price.cloud or '' for price in prices}))}, and the network is {own}'s"
    found = cheapest((rented(tape, gpu, devices, price), price) for price in there)
    if found is not None:
        return found, ""
    counts = ", ".join(f"{count}" for count in sorted({price.count or 1 for price in there}))
    return None, f"the instances on offer have {counts} card{'' if counts == '1' else 's'}, and the plan has {_together(tape, gpu)} in a node"


def _together(tape: Tape, gpu: Gpu) -> int:
    """Cards that have to stand in one instance: those of a node."""
    return gpu.network.gpus_per_node if gpu.network else per_node(tape, gpu)


def rented(tape: Tape, gpu: Gpu, devices: int, price: Price | None = None) -> int:
    """Cards that are paid for so many devices of this step, whose nodes stand apart, each with a network of its own, as its seconds are.

    At a price of whole instances these: one for each node, but those of two or more times eight cards, which hold several where no network is given.
    Else nodes are rented whole where there are several, or where their network says how large they are.
    """
    number, together = nodes(tape, gpu), _together(tape, gpu)
    if price is None or price.count is None:
        return devices if gpu.network is None and number == 1 else number * max(together, GPUS_PER_NODE if gpu.network is None else 1)
    taken = price.count if gpu.network else min(price.count, GPUS_PER_NODE)  # by a node
    return price.count * instances_for(price.count, number, max(together, taken))


class Timed(Protocol):
    """A plan, or a row of a study that has one."""

    @property
    def timing(self) -> Timing | None: ...


_Timed = TypeVar("_Timed", bound=Timed)


def ranked(plans: Iterable[_Timed]) -> tuple[_Timed, ...]:
    """Plans by what the run costs, or a sample where not every run is given, then by throughput; those without a price or a time come last."""
    found = tuple(plans)
    priced = [plan.timing for plan in found if plan.timing is not None and plan.timing.price is not None]
    of_runs = all(timing.cost_usd is not None for timing in priced)

    def rank(plan: Timed) -> tuple[float, float]:
        timing = plan.timing
        if timing is None:
            return math.inf, 0.0
        if timing.usd_per_million is None:
            return math.inf, -timing.samples_per_s
        return (timing.cost_usd if of_runs and timing.cost_usd is not None else timing.usd_per_million), -timing.samples_per_s

    return tuple(sorted(found, key=rank))
