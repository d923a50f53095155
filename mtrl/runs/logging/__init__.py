"""Logs of a run: the record that reports read, and sinks for people."""

from mtrl.runs.logging.jsonl import JsonLines
from mtrl.runs.logging.sink import SINKS, STEP_LABEL, Log, RunInfo, Sink, Stamp, by_task

__all__ = ["SINKS", "STEP_LABEL", "JsonLines", "Log", "RunInfo", "Sink", "Stamp", "by_task"]
