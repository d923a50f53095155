"""Agents: what acts, observes and learns. One folder per agent; replay or rollouts are its own affair."""

from mtrl.registry import Registry

AGENTS = Registry("agent", {"sac": "mtrl.agents.sac.agent:build"})  # `build(config, spec, device) -> Agent`
