"""Ignite handlers that MONAI does not have; they attach to any MONAI trainer or evaluator."""

from segcft_ext.handlers.counterfactual_writer import CounterfactualWriter
from segcft_ext.handlers.dscm_figures import DSCMFigures
from segcft_ext.handlers.epoch_seed import EpochSeed
from segcft_ext.handlers.final_validation import FinalValidationHandler
from segcft_ext.handlers.metrics_file import MetricsFile
from segcft_ext.handlers.mlflow_run import MLflowRun
from segcft_ext.handlers.model_saver import ModelSaver
from segcft_ext.handlers.progress import Progress
from segcft_ext.handlers.schedule_in_rounds import ScheduleInRounds
from segcft_ext.handlers.segmentation_report import SegmentationReport
from segcft_ext.handlers.training_checkpoint import TrainingCheckpoint
from segcft_ext.handlers.weight_average import WeightAverage, warmed_up_average

__all__ = [
    "CounterfactualWriter",
    "DSCMFigures",
    "EpochSeed",
    "FinalValidationHandler",
    "MLflowRun",
    "MetricsFile",
    "ModelSaver",
    "Progress",
    "ScheduleInRounds",
    "SegmentationReport",
    "TrainingCheckpoint",
    "WeightAverage",
    "warmed_up_average",
]
