# SPDX-License-Identifier: Apache-2.0
"""What SkyPilot's catalogue does not say of instances, or says wrongly: which form a card has, whose machine it stands in, what its memory is of."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Instances of a cloud, by how their names begin, and the form of card that all of them have, with its source."""

    cloud: str
    begins: str
    form: str
    source: str


_KNOWN = "as generally known of the maker's page, which could not be read: check before use"
FAMILIES = (
    Family("aws", "p3", "SXM", f"AWS EC2 P3 instances, V100 with NVLink; {_KNOWN}"),
    Family("aws", "p4d", "SXM", "lambdalabs.com/blog/tesla-a100-server-total-cost-of-ownership: 8x A100 SXM4 40GB"),
    Family("aws", "p5.", "SXM", "hardware/networks.toml, aws-p5"),
    Family("aws", "p5e", "SXM", "hardware/networks.toml, aws-p5"),
    Family("gcp", "a2-", "SXM", f"Google Cloud A2 machines, A100 with NVLink; {_KNOWN}"),
    Family("gcp", "a3-", "SXM", f"Google Cloud A3 machines, HGX H100 and H200; {_KNOWN}"),
    Family("azure", "Standard_ND96", "SXM", "learn.microsoft.com, ND A100 v4 and ND H100 v5 series: NVLink between eight cards"),
    Family("azure", "Standard_ND40rs_v2", "SXM", f"Azure NDv2 series, eight V100 with NVLink; {_KNOWN}"),
    Family("azure", "Standard_NC6s_v3", "PCIe", f"Azure NCv3 series; {_KNOWN}"),
    Family("azure", "Standard_NC12s_v3", "PCIe", f"Azure NCv3 series; {_KNOWN}"),
    Family("azure", "Standard_NC24s_v3", "PCIe", f"Azure NCv3 series; {_KNOWN}"),
    Family("azure", "Standard_NC24rs_v3", "PCIe", f"Azure NCv3 series; {_KNOWN}"),
    Family("azure", "Standard_NC24ads_A100_v4", "PCIe", f"Azure NC A100 v4 series; {_KNOWN}"),
    Family("azure", "Standard_NC48ads_A100_v4", "PCIe", f"Azure NC A100 v4 series; {_KNOWN}"),
    Family("azure", "Standard_NC96ads_A100_v4", "PCIe", f"Azure NC A100 v4 series; {_KNOWN}"),
    Family("azure", "Standard_NC40ads_H100_v5", "NVL", f"Azure NC H100 v5 series, H100 NVL with 94 GB; {_KNOWN}"),
    Family("azure", "Standard_NC80adis_H100_v5", "NVL", f"Azure NC H100 v5 series, H100 NVL with 94 GB; {_KNOWN}"),
)

# Cards in an instance of which the catalogue says another number.
CARDS = {("azure", "Standard_ND96isr_H100_v5"): 8}  # aspire.dev, StandardNDSH100v5: 8 GPU(s); the catalogue of v6 has 12

# Clouds whose `SizeInMiB` is the memory of all cards together. Source: skypilot 0.14.1, catalog/data_fetchers/fetch_vast.py (gpu_total_ram);
# rows of catalogs/v8/primeintellect/vms.csv.
MEMORY_OF_ALL = ("vast", "primeintellect")

# Clouds whose prices are the least that may be bid, which nobody need get a machine for. Source: skypilot 0.14.1, catalog/data_fetchers/fetch_mithril.py
# (`minimum_price_cents` is written as both prices).
LEAST_BIDS = ("mithril",)

# The machine that cards priced apart from it stand in: it is rented with them. Source: skypilot 0.14.1, catalog/gcp_catalog.py.
MACHINES: dict[tuple[str, int], tuple[str, ...]] = {
    **{("A100", count): (f"a2-highgpu-{count}g",) for count in (1, 2, 4, 8)},
    ("A100", 16): ("a2-megagpu-16g",),
    **{("A100-80GB", count): (f"a2-ultragpu-{count}g",) for count in (1, 2, 4, 8)},
    ("L4", 1): tuple(f"g2-standard-{cores}" for cores in (4, 8, 12, 16, 32)),
    ("L4", 2): ("g2-standard-24",),
    ("L4", 4): ("g2-standard-48",),
    ("L4", 8): ("g2-standard-96",),
    **{("H100", count): (f"a3-highgpu-{count}g",) for count in (1, 2, 4, 8)},
    ("H100-MEGA", 8): ("a3-megagpu-8g",),
    ("H200", 8): ("a3-ultragpu-8g",),
    ("B200", 8): ("a4-highgpu-8g",),
    **{("RTXPRO6000", count): (f"g4-standard-{48 * count}",) for count in (1, 2, 4, 8)},
}

_FORMS = {"SXM": re.compile(r"SXM|HBM3\b", re.IGNORECASE), "PCIe": re.compile(r"PCI", re.IGNORECASE), "NVL": re.compile(r"NVL(?!INK)", re.IGNORECASE)}


@functools.lru_cache(4096)  # a cloud has few instances, each in many regions and zones
def forms_in(text: str) -> frozenset[str]:
    """The forms of card that a text names: SXM, PCIe, NVL."""
    return frozenset(form for form, pattern in _FORMS.items() if pattern.search(text))


@functools.lru_cache(4096)
def family_form(cloud: str, instance: str) -> str | None:
    """The form of the cards of an instance whose name does not say it, where that is known."""
    return next((family.form for family in FAMILIES if family.cloud == cloud and instance.startswith(family.begins)), None)
