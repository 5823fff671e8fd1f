"""Judging counterfactuals: effectiveness, locality, axioms, realism and, on phantoms, the truth."""
