"""Trainers and evaluators of the deep structural causal model, as MONAI engines."""

from segcft_ext.engines.cft_evaluator import CFTEvaluator
from segcft_ext.engines.cft_trainer import CFTTrainer
from segcft_ext.engines.counterfactual_evaluator import CounterfactualEvaluator
from segcft_ext.engines.dscm_evaluator import DSCMEvaluator
from segcft_ext.engines.dscm_trainer import DSCMTrainer

__all__ = ["CFTEvaluator", "CFTTrainer", "CounterfactualEvaluator", "DSCMEvaluator", "DSCMTrainer"]
