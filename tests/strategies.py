# SPDX-License-Identifier: Apache-2.0
"""What the laws are tried on."""

import numpy as np
from hypothesis import strategies as st

from bsmodel import Envelope, Polynomial
from bsmodel.tape import Tape, polynomials, upper_envelope


@st.composite
def sizes(draw: st.DrawFn, fixed: int = 10**11, per_sample: int = 10**9, per_pair: int = 10**5) -> Polynomial:
    """Polynomials that are nowhere below zero and never fall from b = 1 on, straight lines as often as not."""
    of_pairs = draw(st.just(0) | st.integers(0, per_pair))
    of_samples = draw(st.integers(-of_pairs, per_sample))
    return Polynomial(draw(st.integers(-of_samples, fixed)), of_samples, of_pairs)


@st.composite
def envelopes(draw: st.DrawFn) -> Envelope:
    """Envelopes of one to eight polynomials."""
    return Envelope(tuple(draw(st.lists(sizes(), min_size=1, max_size=8))))


@st.composite
def bundles(draw: st.DrawFn, per_pair: int = 4) -> np.ndarray:
    """Coefficients of many polynomials, ties included."""
    found = draw(st.lists(sizes(1000, 50, per_pair), min_size=1, max_size=40))
    return np.array([(each.fixed, each.per_sample, each.per_pair) for each in found], np.int64).T


def envelope_of(coefficients: np.ndarray) -> Envelope:
    """The envelope that footprint would keep of these polynomials."""
    return Envelope(polynomials(coefficients, upper_envelope(coefficients)))


def same_sizes(one: Tape, other: Tape, batch: int) -> bool:
    """Whether two tapes allocate the same bytes in the same order at a batch."""
    return one.blocks == other.blocks and bool((one.sizes(batch) == other.sizes(batch)).all())
