"""Configuration of a run and its presets. Imports no torch."""

from mtrl.config.schema import (
    Config,
    EnvConfig,
    EvalConfig,
    NetworkConfig,
    PpoConfig,
    ReplayConfig,
    SacConfig,
    TrainConfig,
)

__all__ = [
    "Config",
    "EnvConfig",
    "EvalConfig",
    "NetworkConfig",
    "PpoConfig",
    "ReplayConfig",
    "SacConfig",
    "TrainConfig",
]
