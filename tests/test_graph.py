import itertools
import random

import pytest

from segcft_ext.graph import topological_order


def test_no_edges_keep_the_given_order():
    assert topological_order(["c", "a", "b"], {}) == ["c", "a", "b"]


def test_parents_come_before_children_in_any_random_dag():
    random.seed(0)
    for _ in range(20):
        names = random.sample("abcdefgh", 8)
        parents = {
            child: [p for p in names[:position] if random.random() < 0.4] for position, child in enumerate(names)
        }
        shuffled = random.sample(names, 8)
        order = topological_order(shuffled, parents)
        assert sorted(order) == sorted(names)
        assert all(order.index(p) < order.index(child) for child, its in parents.items() for p in its)


@pytest.mark.parametrize("names", list(itertools.permutations("abc")))
def test_a_cycle_is_named(names):
    with pytest.raises(ValueError, match=r"cycle \w -> \w -> \w -> \w, expected none"):
        topological_order(names, {"a": ["c"], "b": ["a"], "c": ["b"]})


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        ({"a": ["d"]}, r"parents.a: unknown variable 'd'; the variables are \['a', 'b', 'c'\]"),
        ({"d": ["a"]}, "parents.d: unknown variable 'd'"),
        ({"a": ["a"]}, "'a' cannot be its own parent"),
        ({"a": ["b", "b"]}, "each parent once"),
        ({"a": "b"}, "parents.a: found 'b', expected a list"),
        ({"a": None}, "parents.a: found None, expected a list"),
    ],
)
def test_faulty_graphs_are_refused(parents, message):
    with pytest.raises(ValueError, match=message):
        topological_order(["a", "b", "c"], parents)
