# SPDX-License-Identifier: Apache-2.0
"""Numbers that callers give: whole or finite, in range, or one line that names them."""

import math
from fractions import Fraction

import numpy as np
import pytest

from bsmodel import InvalidInputError
from bsmodel.units import finite, whole

NO_NUMBERS = [math.nan, math.inf, -math.inf, True, np.True_, "8", None, [8], np.arange(100), 10**5000]


@pytest.mark.parametrize("value", [8, 8.0, np.int64(8), np.uint8(8), np.float32(8), np.float64(8), Fraction(8)], ids=lambda value: type(value).__name__)
def test_a_whole_number_is_an_int_whatever_its_type(value):
    assert type(whole("batch", value)) is int
    assert whole("batch", value) == 8
    assert type(finite("price", value)) is float
    assert finite("price", value) == 8.0


@pytest.mark.parametrize("value", [*NO_NUMBERS, 0, -1, 8.5, 10**26, 1e26], ids=lambda value: type(value).__name__)
def test_what_is_no_count_is_one_line_that_names_it(value):
    with pytest.raises(InvalidInputError, match=r"^batch is [^\n]{1,80}; expected a whole number (of at least 1|from 1 to 9007199254740992)$"):
        whole("batch", value)


@pytest.mark.parametrize("value", [*NO_NUMBERS, 0, -1.5], ids=lambda value: type(value).__name__)
def test_what_is_no_finite_number_in_range_is_one_line_that_names_it(value):
    with pytest.raises(InvalidInputError, match=r"^price is [^\n]{1,80}; expected a finite number above 0$"):
        finite("price", value, above=0)


def test_the_ends_of_a_range_belong_to_it_and_are_named():
    assert [whole("shards", value, least=0, most=4) for value in (0, 4)] == [0, 4]
    assert finite("share", 0.0, least=0) == 0.0
    with pytest.raises(InvalidInputError, match="shards is 5; expected a whole number from 0 to 4"):
        whole("shards", 5, least=0, most=4)
