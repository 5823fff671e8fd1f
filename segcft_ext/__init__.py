"""What MONAI does not have for segmentor-guided counterfactual image synthesis.

A deep structural causal model (:class:`segcft_ext.dscm.DSCM`) makes the counterfactual; fine-tuning it against a frozen
guide (:mod:`segcft_ext.guides`) makes the edit hit its target. The bundles under ``bundles/`` put the parts together.
"""

__version__ = "0.1.0"
