import pytest

from data_prep.table import infer_kind


def test_a_text_among_numbers_is_said():
    assert infer_kind(["50", "61.5", "-3"], "age") == "continuous"
    with pytest.raises(ValueError, match=r"age: 31 different values \(1 of 31 are no numbers\), so its kind"):
        infer_kind([*map(str, range(30)), "old"], "age")
    with pytest.raises(ValueError, match="name: 30 different values, so its kind"):
        infer_kind([f"n{i}" for i in range(30)], "name")
