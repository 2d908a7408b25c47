# SPDX-License-Identifier: Apache-2.0
"""What the laws are tried on."""

import numpy as np
from hypothesis import strategies as st

from bsmodel import Envelope, Line
from bsmodel.tape import Tape, upper_envelope

LINES = st.tuples(st.integers(0, 10**11), st.integers(0, 10**9))


@st.composite
def envelopes(draw: st.DrawFn) -> Envelope:
    """Envelopes of one to eight lines."""
    lines = draw(st.lists(LINES, min_size=1, max_size=8))
    return Envelope(tuple(Line(*line) for line in lines))


@st.composite
def bundles(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Fixed and per-sample bytes of many lines, ties included."""
    lines = draw(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 50)), min_size=1, max_size=40))
    return np.array([f for f, _ in lines], np.int64), np.array([s for _, s in lines], np.int64)


def envelope_of(fixed: np.ndarray, per_sample: np.ndarray) -> Envelope:
    """The envelope that footprint would keep of these lines."""
    return Envelope(tuple(Line(int(fixed[i]), int(per_sample[i])) for i in upper_envelope(fixed, per_sample)))


def same_sizes(one: Tape, other: Tape, batch: int) -> bool:
    """Whether two tapes allocate the same bytes in the same order at a batch."""
    return one.blocks == other.blocks and bool((one.sizes(batch) == other.sizes(batch)).all())
