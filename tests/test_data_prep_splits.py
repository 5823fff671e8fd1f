from collections import Counter

import pytest

from data_prep.cases import Item
from data_prep.splits import split_cases


def items(counts, patients=None):
    made = [(source, f"{source}-{i}") for source, count in counts.items() for i in range(count)]
    return [Item(s, n, i, None if patients is None else f"p{patients(i)}") for i, (s, n) in enumerate(made)]


def test_every_source_is_divided_in_the_same_proportions():
    cases = items({"a": 100, "b": 40, "c": 10})
    parts = split_cases(cases, seed=0)
    count = Counter((case.source, split, use) for case, (split, use) in zip(cases, parts))
    for source, total in (("a", 100), ("b", 40), ("c", 10)):
        assert count[source, "validation", None] == round(0.1 * total)
        assert count[source, "test", None] == round(0.2 * total)
        guide, judge = (count[source, "training", use] for use in ("guide", "judge"))
        assert guide + judge == round(0.7 * total) and abs(guide - judge) <= 1


def test_splits_depend_on_the_seed_and_not_on_the_order():
    cases = items({"a": 60, "b": 30})
    parts = dict(zip(cases, split_cases(cases, seed=3)))
    assert parts == dict(zip(reversed(cases), split_cases(cases[::-1], seed=3)))
    assert parts != dict(zip(cases, split_cases(cases, seed=4)))


def test_another_source_does_not_change_the_splits_of_this_one():
    alone, together = items({"a": 50}), items({"a": 50, "b": 20})
    # Training cases are divided in a second step, which is stratified by source as well.
    assert split_cases(alone, seed=0) == split_cases(together, seed=0)[:50]


def test_a_patient_stays_in_one_split_and_one_use_across_sources():
    cases = items({"a": 60, "b": 60}, patients=lambda i: i % 23)
    parts = split_cases(cases, seed=1)
    of_patient: dict = {}
    for case, part in zip(cases, parts):
        of_patient.setdefault(case.patient, set()).add(part)
    assert all(len(found) == 1 for found in of_patient.values())
    share = Counter(split for split, _ in parts)
    assert share["training"] == pytest.approx(84, abs=8) and share["test"] == pytest.approx(24, abs=8)


def test_wrong_fractions_and_too_few_cases_are_errors():
    for fractions in ({"training": 1.0}, {"training": 0.5, "validation": 0.1, "test": 0.2}):
        with pytest.raises(ValueError, match="fractions"):
            split_cases(items({"a": 20}), 0, fractions)
    with pytest.raises(ValueError, match="3 accepted cases of 3 patients are too few: none is left for validation"):
        split_cases(items({"a": 3}), 0)
    with pytest.raises(ValueError, match="18 accepted cases of 2 patients are too few: none is left for"):
        split_cases(items({"a": 18}, lambda i: i % 2), 0)
    each = r"12 accepted cases of 12 patients are too few in 6 sources, each divided on its own \(a --source_column can"
    with pytest.raises(ValueError, match=each):
        split_cases(items(dict.fromkeys("abcdef", 2)), 0)
