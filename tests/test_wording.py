"""Names, units and quantities as people read them."""

from __future__ import annotations

import pytest

from segcft_ext.wording import quantity, words, written_unit


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (12.345, "percent", "12.3 %"),
        (2.5, "mm2", "2.5 mm²"),
        (7.0, "mm3", "7 mm³"),
        (61, "years", "61 years"),
        (1, "", "1"),
        (float("nan"), "mm2", "–"),
    ],
)
def test_a_quantity_has_its_unit_as_people_write_it(value: float, unit: str, expected: str) -> None:
    assert quantity(value, unit) == expected


def test_names_are_words_and_other_units_stay() -> None:
    assert words("left_lung_area") == "left lung area"
    assert [written_unit(unit) for unit in ("mm2", "percent", "years")] == ["mm²", "%", "years"]
