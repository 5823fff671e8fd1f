"""Trainers of the deep structural causal model, as MONAI engines."""

from segcft_ext.engines.cft_trainer import CFTTrainer
from segcft_ext.engines.dscm_trainer import DSCMTrainer

__all__ = ["CFTTrainer", "DSCMTrainer"]
