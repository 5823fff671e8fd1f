"""The causal graph over the scalar variables, as it stands in a config: ``parents: {child: [parent, …]}``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import networkx as nx

__all__ = ["topological_order"]


def topological_order(names: Sequence[str], parents: Mapping[str, Sequence[str]]) -> list[str]:
    """All names, parents before their children, otherwise in the given order.

    Args:
        names: the variables.
        parents: the parents of each variable that has some.

    Raises:
        ValueError: when the graph names an unknown variable, a parent twice, a variable as its own parent, or holds a
            cycle; the message names them.

    Example:
        >>> topological_order(["area", "age", "sex"], {"area": ["sex", "age"]})
        ['age', 'sex', 'area']
    """
    position = {name: index for index, name in enumerate(names)}
    graph = nx.DiGraph()
    graph.add_nodes_from(names)
    for child, its_parents in parents.items():
        # A bare string is a sequence too: of its letters.
        if isinstance(its_parents, str) or not isinstance(its_parents, Sequence):
            raise ValueError(f"parents.{child}: found {its_parents!r}, expected a list of names")
        for name in (child, *its_parents):
            if name not in position:
                raise ValueError(f"parents.{child}: unknown variable {name!r}; the variables are {list(names)}")
        if child in its_parents:
            raise ValueError(f"parents.{child}: {child!r} cannot be its own parent")
        if len(set(its_parents)) != len(its_parents):
            raise ValueError(f"parents.{child}: found {list(its_parents)}, expected each parent once")
        graph.add_edges_from((parent, child) for parent in its_parents)
    try:
        return list(nx.lexicographical_topological_sort(graph, key=position.__getitem__))
    except nx.NetworkXUnfeasible:
        cycle = [edge[0] for edge in nx.find_cycle(graph)]
        raise ValueError(f"parents: found the cycle {' -> '.join([*cycle, cycle[0]])}, expected none") from None
