"""The sections of a job file: frozen models that refuse unknown keys and wrong types."""

from hpclbfl.sections.base import Section
from hpclbfl.sections.batching import BatchingConfig, EmulateConfig
from hpclbfl.sections.data import DataConfig, PartitionConfig
from hpclbfl.sections.gradients import GradientsConfig, NoiseScaleConfig, ScalerConfig
from hpclbfl.sections.model import LossConfig, ModelConfig
from hpclbfl.sections.optimizer import OptimizerConfig, ScheduleConfig
from hpclbfl.sections.run import CheckpointConfig, CommConfig, EvaluateConfig, StopConfig
from hpclbfl.sections.sync import BspConfig, FedAvgConfig, LocalConfig, PostLocalConfig, SelSyncConfig, SyncConfig

__all__ = [
    "BatchingConfig",
    "BspConfig",
    "CheckpointConfig",
    "CommConfig",
    "DataConfig",
    "EmulateConfig",
    "EvaluateConfig",
    "FedAvgConfig",
    "GradientsConfig",
    "LocalConfig",
    "LossConfig",
    "ModelConfig",
    "NoiseScaleConfig",
    "OptimizerConfig",
    "PartitionConfig",
    "PostLocalConfig",
    "ScalerConfig",
    "ScheduleConfig",
    "Section",
    "SelSyncConfig",
    "StopConfig",
    "SyncConfig",
]
