"""The sections of a job file: frozen models that refuse unknown keys and wrong types."""

from hpclbfl.config.sections.algorithm import AlgorithmConfig, LocalConfig
from hpclbfl.config.sections.base import Section
from hpclbfl.config.sections.batching import BatchingConfig, EmulateConfig
from hpclbfl.config.sections.compression import CompressionConfig
from hpclbfl.config.sections.data import DataConfig, ImageDataConfig
from hpclbfl.config.sections.gradients import (
    DetectorConfig,
    DetectorName,
    GradientsConfig,
    NoiseScaleConfig,
    TeacherConfig,
    TransformConfig,
    WatchedDetector,
)
from hpclbfl.config.sections.model import LossConfig, ModelConfig
from hpclbfl.config.sections.optimizer import OptimizerConfig
from hpclbfl.config.sections.partition import PartitionConfig
from hpclbfl.config.sections.run import CheckpointConfig, CommConfig, EvaluateConfig, StopConfig
from hpclbfl.config.sections.schedule import ScheduleConfig

__all__ = [
    "AlgorithmConfig",
    "BatchingConfig",
    "CheckpointConfig",
    "CommConfig",
    "CompressionConfig",
    "DataConfig",
    "DetectorConfig",
    "DetectorName",
    "EmulateConfig",
    "EvaluateConfig",
    "GradientsConfig",
    "ImageDataConfig",
    "LocalConfig",
    "LossConfig",
    "ModelConfig",
    "NoiseScaleConfig",
    "OptimizerConfig",
    "PartitionConfig",
    "ScheduleConfig",
    "Section",
    "StopConfig",
    "TeacherConfig",
    "TransformConfig",
    "WatchedDetector",
]
