"""Frozen, typed configuration: what a YAML may say, checked at the door."""

from medseg_diff.config.adapters import LoraConfig
from medseg_diff.config.base import Section
from medseg_diff.config.model import AdversarialConfig, LatentConfig, ModelConfig
from medseg_diff.config.parse import load_config, merged, parse_config
from medseg_diff.config.prediction import FuseName, PredictionConfig, SamplerName
from medseg_diff.config.restoration import RestorationConfig
from medseg_diff.config.sections import (
    Config,
    DataConfig,
    Normalisation,
    ObjectiveConfig,
    PlanConfig,
    TrainingConfig,
)
from medseg_diff.config.task import TaskConfig

__all__ = [
    "AdversarialConfig",
    "Config",
    "DataConfig",
    "FuseName",
    "LatentConfig",
    "LoraConfig",
    "ModelConfig",
    "Normalisation",
    "ObjectiveConfig",
    "PlanConfig",
    "PredictionConfig",
    "RestorationConfig",
    "SamplerName",
    "Section",
    "TaskConfig",
    "TrainingConfig",
    "load_config",
    "merged",
    "parse_config",
]
