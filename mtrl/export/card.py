"""The model card of an exported policy: Markdown with the front matter that model hubs read."""

from collections.abc import Mapping
from typing import Any

import yaml

from mtrl.config.labels import RESTART, described_methods, method_label, methods_of, with_options
from mtrl.networks.make import describe_network

_USE = """\
import mtrl

policy = mtrl.load_policy("."{own})  # needs torch, numpy and safetensors
actions, _ = policy.predict(observations)  # [tasks, {obs}] -> [tasks, {act}], rows as in policy.task_names
action, _ = policy.for_task("{task}").predict(observation)  # [{obs}] -> [{act}]
"""


def model_card(policy: Mapping[str, Any]) -> str:
    """Return the card of a policy with the content of policy.json, without a license."""
    config = policy["config"]
    tasks = policy["tasks"]
    name = ", ".join(tasks) if len(tasks) <= 3 else f"{len(tasks)} tasks of {config['suite']}"
    title = f"{config['agent'].upper()} with {method_label(config)} on {name}"
    architecture = policy["network"]["architecture"]
    own = f", architecture={architecture!r}" if ":" in architecture else ""  # code that must be trusted
    use = _USE.format(obs=policy["obs_dim"], act=policy["action_dim"], task=tasks[0], own=own)
    front = yaml.safe_dump(_front_matter(title, policy), sort_keys=False, allow_unicode=True)
    sections = [
        f"---\n{front}---\n\n# {title}\n",
        f"One policy for {len(tasks)} tasks of the suite `{config['suite']}`, trained by "
        f"multi-task reinforcement learning with mtrl. Actions lie in [-1, 1].{_stretching(policy)}\n",
        f"## Use\n\n```python\n{use}```\n",
        f"## Results\n\n{_results(policy)}\n",
        f"## Training\n\n{_list(_facts(policy))}\n",
        f"## Versions\n\n{_list(policy['versions'])}\n",
    ]
    return "\n".join(sections)


def _front_matter(title: str, policy: Mapping[str, Any]) -> dict[str, Any]:
    tags = ["reinforcement-learning", "multi-task", policy["config"]["suite"]]
    tags += dict.fromkeys(name for name, _ in methods_of(policy["config"]).values())
    matter: dict[str, Any] = {"library_name": "mtrl", "tags": tags}
    if policy["evaluation"] is None:
        return matter
    kinds = {"success": ("success_rate", "success at any step"), "return": ("mean_reward", "mean return")}
    results = [
        {
            "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
            "dataset": {"type": task, "name": task},
            "metrics": [
                {"type": kind, "name": name, "value": values[key]}
                for key, (kind, name) in kinds.items()
                if values[key] is not None
            ],
        }
        for task, values in policy["evaluation"]["tasks"].items()
    ]
    return matter | {"model-index": [{"name": title, "results": results}]}


def _stretching(policy: Mapping[str, Any]) -> str:
    """Return how actions become those of the environments, where these have other bounds."""
    bounds = {
        task: (low, high)
        for task, (low, high) in policy["action_bounds"].items()
        if set(low) != {-1} or set(high) != {1}
    }
    if not bounds:
        return ""
    rows = "\n".join(f"| {task} | {low} | {high} |" for task, (low, high) in bounds.items())
    return (
        " Environments take `low + (action + 1) / 2 * (high - low)`, rounded if their actions are integers:"
        f"\n\n| task | low | high |\n|---|---|---|\n{rows}"
    )


def _results(policy: Mapping[str, Any]) -> str:
    evaluation, step = policy["evaluation"], policy["vector_step"]
    if evaluation is None:
        return f"Not evaluated: the run has no evaluation up to vector step {step:,}."
    earlier = (
        f"From an evaluation at vector step {evaluation['vector_step']:,}; the exported parameters are "
        f"newer, from vector step {step:,}.\n\n"
    )
    about = (
        f"Deterministic policy, {evaluation['episodes_per_task']} episodes per task, goals fixed. Success: "
        "the task reported success at any step of the episode; in the second column at its last step.\n"
    )
    rows = [
        f"| {task} | {_cells(values, 'success', 'success_last', 'return')} |"
        for task, values in evaluation["tasks"].items()
    ]
    head = ["| task | success | success at the last step | return |", "|---|---|---|---|"]
    mean = f"| mean | {_cells(evaluation, 'mean_success', 'mean_success_last', 'mean_return')} |"
    text = "\n".join([about, *head, *rows, mean])
    return text if evaluation["vector_step"] == step else earlier + text


def _cells(values: Mapping[str, Any], *keys: str) -> str:
    cells = ("-" if values[key] is None else f"{values[key]:.{1 if 'return' in key else 2}f}" for key in keys)
    return " | ".join(cells)


def _facts(policy: Mapping[str, Any]) -> dict[str, Any]:
    config = policy["config"]
    env = config["env"]
    length = config["eval"].get("max_episode_steps") or env["max_episode_steps"]
    return {
        "agent": config["agent"],
        **described_methods(config),
        "suite": with_options(config["suite"], config["suite_options"]),
        "seed": config["seed"],
        "vector steps": f"{policy['vector_step']:,} of {config['steps']:,}, "
        f"{env['envs_per_task']} environment{'s' if env['envs_per_task'] > 1 else ''} per task",
        "episodes": f"{env['max_episode_steps']} steps in training, {length} in the evaluation",
        "network": describe_network(policy["network"]["architecture"], policy["network"]["arguments"]),
        "observations": f"{policy['obs_dim']} numbers"
        + (", standardised by the policy" if policy["standardises_observations"] else ""),
        **({"resume": RESTART} if env.get("resume") == "restart" else {}),
    }


def _list(facts: Mapping[str, Any]) -> str:
    return "\n".join(f"* {name}: {value}" for name, value in facts.items())
