# SPDX-License-Identifier: Apache-2.0
"""Which of all offers are asked about: clouds, regions, on demand or spot."""

from __future__ import annotations

from collections.abc import Sequence

from bsmodel.errors import InvalidInputError, UnknownNameError
from bsmodel.prices.price import Offers


def among(offers: Offers, clouds: Sequence[str] = (), regions: Sequence[str] = (), spot: bool = False) -> Offers:
    """Those of these clouds and regions (default: all), on demand or spot; raises `UnknownNameError` for a cloud or region that no offer is of,
    `InvalidInputError` where none says its own.
    """
    wanted = _known("cloud", [cloud.lower() for cloud in clouds], {price.cloud for _, price in offers if price.cloud})
    found = [(gpu, price) for gpu, price in offers if not clouds or price.cloud in wanted]
    of = f"region of {', '.join(sorted(wanted))}" if clouds else "region"
    places = _known(of, regions, {price.region for _, price in found if price.region})
    return tuple((gpu, price) for gpu, price in found if price.spot == spot and (not regions or price.region in places))


def _known(kind: str, names: Sequence[str], known: set[str]) -> set[str]:
    """The names, of which each is known, or several with commas between: regions have commas, too."""
    found: set[str] = set()
    if names and not known:
        raise InvalidInputError(f"no offer says its {kind}; expected a table that does, to ask for {', '.join(names)}")
    for name in names:
        for part in [name] if name in known else [part.strip() for part in name.split(",")]:
            if part not in known:
                raise UnknownNameError(kind, part, known)
            found.add(part)
    return found
