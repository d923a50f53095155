"""Agents act, observe and learn. Each has a folder, with its replay or rollouts.

An entry is called as `plugin(config, spec, device)` and returns a `mtrl.agents.base.Agent`. It may have an
attribute `check`, called as `check(config, num_tasks)` before anything starts. `check` raises UserError for
settings that the agent cannot train with. An attribute `unread`, called as `unread(config)`, returns the
sections of the configuration and the settings, such as "sac" or "train.warmup_steps", that have no effect:
name -> what follows it to say why, such as "is not read by the agent ppo". The command line and sweeps refuse
them, and the start screen names those that are not at their defaults.
"""

from pathlib import Path

from mtrl.registry import Registry

AGENTS = Registry(
    "agent",
    {"sac": "mtrl.agents.sac.agent:SACAgent", "ppo": "mtrl.agents.ppo.agent:PPOAgent"},
    given=("config", "spec", "device"),
    bibliography=Path(__file__).with_name("references.bib"),
)
