# SPDX-License-Identifier: Apache-2.0
"""What cards cost: offers of instances by cloud, region and day, from SkyPilot's catalogue or a table of the user's own."""

from bsmodel.prices.asked import among
from bsmodel.prices.price import SPOT, Offers, Price, cheapest, instances_for, price_line, undercut
from bsmodel.prices.skypilot import Account, read_catalogue
from bsmodel.prices.table import keep, kept, kept_path, load

__all__ = (
    "SPOT",
    "Account",
    "Offers",
    "Price",
    "among",
    "cheapest",
    "instances_for",
    "keep",
    "kept",
    "kept_path",
    "load",
    "price_line",
    "read_catalogue",
    "undercut",
)
