"""Configuration of a run and its presets. Imports no torch."""

from mtrl.config.schema import Config

__all__ = ["Config"]
