import math

import numpy as np
import pytest
from rle_text import encode_rle

from data_prep.cases import REASONS, Rejected
from data_prep.rle import decode_rle


def test_starts_count_from_one_along_the_rows():
    mask = decode_rle("2 3 8 1", (3, 4))
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, [[0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]])


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (64, 33)])
def test_decoding_undoes_encoding(shape):
    mask = np.random.default_rng(0).random(shape) < 0.5
    mask[0, 0] = mask[-1, -1] = True
    np.testing.assert_array_equal(decode_rle(encode_rle(mask), shape), mask)


def test_runs_may_touch_in_any_order_and_reach_the_last_pixel():
    np.testing.assert_array_equal(decode_rle("  3 2\n1 2 ", (2, 2)), np.ones((2, 2), bool))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no runs"),
        ("  ", "no runs"),
        (math.nan, "no runs"),  # a missing cell as pandas reads it
        ("1 2 3", "pairs"),
        ("1 x", "whole numbers"),
        ("1.0 2", "whole numbers"),
        ("-1 2", "whole numbers"),
        ("nan", "whole numbers"),
        ("1_0 2", "whole numbers"),
        ("9999999999999999999999 1", "whole numbers"),
        ("0 2", "outside"),
        ("1 0", "empty"),
        ("5 13", "outside"),
        ("999999999999999 999999999999999", "outside"),
        ("1 3 3 1", "overlap"),
        ("5 2 1 9", "overlap"),
    ],
)
def test_malformed_text_is_rejected(text, complaint):
    with pytest.raises(Rejected) as fault:
        decode_rle(text, (4, 4))
    assert fault.value.reason == "bad_rle" and fault.value.reason in REASONS
    assert complaint in fault.value.text
