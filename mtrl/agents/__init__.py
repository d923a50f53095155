"""Agents act, observe and learn. Each has a folder, with its replay or rollouts.

An entry is called as `plugin(config, spec, device)` and returns a `mtrl.agents.base.Agent`. It may have an
attribute `check`, called as `check(config, num_tasks)` before anything starts. `check` raises UserError for
settings that the agent cannot train with. An attribute `unread`, called as `unread(config)`, tells which
sections and settings have no effect. It returns a mapping from the section or setting to the end of a
sentence about it, such as `{"sac": "is not read by the agent ppo"}`. The command line and sweeps refuse them,
and the start screen names those that are not at their defaults.
"""

from pathlib import Path

from mtrl.registry import Registry

AGENTS = Registry(
    "agent",
    {"sac": "mtrl.agents.sac.agent:SACAgent", "ppo": "mtrl.agents.ppo.agent:PPOAgent"},
    given=("config", "spec", "device"),
    bibliography=Path(__file__).with_name("references.bib"),
)
