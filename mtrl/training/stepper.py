"""One vector step of training: act, start the environments, learn while they step, collect, observe."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mtrl.agents.base import Agent, Floats, LearnsBetweenSteps, Transitions
from mtrl.config.schema import Config
from mtrl.envs import TaskVectorEnv
from mtrl.envs.engine.shared import StepResult
from mtrl.errors import EnvironmentFailure, UserError
from mtrl.runs import console
from mtrl.training.build import build_agent, restart_sentence


class RunState:
    """Everything whose state a checkpoint holds, for a run of `config`; `agent` is made if none is given."""

    def __init__(
        self, config: Config, envs: TaskVectorEnv, device: torch.device, agent: Agent | None = None
    ) -> None:
        self.envs = envs
        self.agent = build_agent(config, envs, device) if agent is None else agent
        self.resume = config.env.resume
        self.begun_anew = False  # whether episodes began anew, because the checkpoint held no environments
        self.rollout = RolloutStatistics(envs.num_tasks, config.env.envs_per_task)
        self.obs: Floats | None = None
        self.restarts = 0  # of workers, in all processes of the run
        self.restart_steps: list[int] = []  # vector steps that lost episodes to a worker that was replaced
        self.success_noted = False  # whether the agent knows the rates of an evaluation at this vector step

    def tree(self) -> dict[str, Any]:
        """Return the parts of a checkpoint: the agent's, the environments' and the loop's own numbers."""
        return {
            **agent_parts(self.agent),
            "envs": self._env_states(),
            "loop": {
                "obs": self.obs,
                "rollout": self.rollout.state_dict(),
                "restarts": self.restarts,
                "restart_steps": self.restart_steps,
                "told": self.success_noted,
            },
        }

    def _env_states(self) -> dict[str, Any]:
        if self.resume != "restart":
            try:
                return self.envs.get_state()
            except UserError as error:
                if self.resume == "exact":
                    raise
                self.resume = "restart"
                console.warning(restart_sentence(str(error)))
        return self.envs.get_state(environments=False)

    @property
    def behind(self) -> bool:
        """Whether the agent has to learn before it can act again (`LearnsBetweenSteps`)."""
        return isinstance(self.agent, LearnsBetweenSteps) and self.agent.behind()

    def load(self, tree: Mapping[str, Any]) -> None:
        """Restore `tree`."""
        self.agent.load_state(tree)
        # `load_checkpoint` has compared the versions, unless it was told not to.
        self.envs.set_state(tree["envs"], any_version=True)
        loop = tree["loop"]
        self.begun_anew = all(env["env"] is None for env in tree["envs"]["envs"])
        # Also if episodes begin anew: the next step is marked as lost, and the transition before it ended in
        # these observations.
        self.obs = np.array(loop["obs"])
        self.rollout.load_state_dict(loop["rollout"])
        self.restarts, self.restart_steps = loop["restarts"], list(loop["restart_steps"])
        self.success_noted = loop.get("told", False)  # former versions did not save it


def agent_parts(agent: Agent) -> dict[str, Any]:
    """Return `agent.state()`. Raises UserError if it has a part with the name of one of the engine's."""
    parts = agent.state()
    if taken := sorted(parts.keys() & {"envs", "loop"}):
        raise UserError(
            f"the parts envs and loop of a checkpoint are the engine's; found {' and '.join(taken)} in "
            f"{type(agent).__name__}.state(). Choose another name."
        )
    return parts


class RolloutStatistics:
    """Sums up the episodes of T*E environments, rows in task-major order."""

    def __init__(self, num_tasks: int, envs_per_task: int) -> None:
        self._tasks, num_envs = num_tasks, num_tasks * envs_per_task
        self._return = np.zeros(num_envs, dtype=np.float64)
        self._success = np.zeros(num_envs, dtype=bool)
        self._known = np.zeros(num_tasks, dtype=bool)  # tasks whose success flag has been a number
        # Of the episodes that ended since the last log line; rows: episodes, sum of returns, successes.
        self._ended: NDArray[np.float64] = np.zeros((3, num_tasks), dtype=np.float64)

    def add(
        self, reward: NDArray[np.float32], success: NDArray[np.float32], ended: NDArray[np.bool_]
    ) -> None:
        """Add one vector step: reward, success flag and end of episode, each [T*E]."""
        self._return += reward
        self._success |= success > 0
        self._known |= ~np.isnan(success).reshape(self._tasks, -1).all(axis=1)
        if ended.any():
            counts = np.stack((ended, ended * self._return, ended & self._success)).astype(np.float64)
            self._ended += counts.reshape(3, self._tasks, -1).sum(axis=2)
            self._return[ended] = 0.0
            self._success[ended] = False

    def drop(self, rows: NDArray[np.bool_]) -> None:
        """Forget the running episodes of these rows [T*E], which were cut short."""
        self._return[rows] = 0.0
        self._success[rows] = False

    def pop_means(self) -> tuple[dict[str, float], dict[str, NDArray[np.float64]]]:
        """Return mean return and any-step success rate of the episodes that ended since the last call.

        The second mapping has the same of each task [T], NaN for a task that ended no episode or gives no
        success flag. Both are empty if no episode ended.
        """
        episodes, returns, successes = self._ended
        self._ended = np.zeros_like(self._ended)
        if not episodes.any():
            return {}, {}
        means = {"rollout/ep_rew_mean": returns.sum() / episodes.sum()}
        each = np.full((2, self._tasks), np.nan)
        own = {"training_return": np.divide(returns, episodes, out=each[0], where=episodes > 0)}
        counted = self._known & (episodes > 0)
        if not counted.any():
            return means, own
        means["rollout/success_rate"] = successes[counted].sum() / episodes[counted].sum()
        return means, own | {"training_success": np.divide(successes, episodes, out=each[1], where=counted)}

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of unfinished and of unreported episodes."""
        sums = {"return": self._return, "success": self._success, "ended": self._ended}
        return {**sums, "known": self._known}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self._return = np.array(state["return"])
        self._success = np.array(state["success"])
        self._ended = np.array(state["ended"])
        self._known = np.array(state["known"])


class Stepper:
    """Moves a run by one vector step at a time.

    Attributes:
        seconds: during which the main thread was busy with `act`, `update` and `env_wait`.
        failure: set when no further step is possible.
    """

    def __init__(self, config: Config, state: RunState) -> None:
        self.config, self.state = config, state
        self.seconds = dict.fromkeys(("act", "update", "env_wait"), 0.0)
        self.failure: EnvironmentFailure | None = None
        self._factors = reward_factors(state.envs)

    def begin(self) -> None:
        """Start the first episodes, unless a restored run has episodes under way."""
        if self.state.obs is None:
            self.state.obs, _ = self.state.envs.reset()

    def vector_step(self, step: int) -> None:
        """Move every environment by one env step; the agent learns while they step."""
        state = self.state
        envs, agent, obs = state.envs, state.agent, state.obs
        assert obs is not None
        with timed(self.seconds, "update"):
            agent.wait()  # learning of the last step that outlasted the environments
        with timed(self.seconds, "act"):
            action = agent.act(obs)
        envs.step_async(action)
        with timed(self.seconds, "update"):
            agent.learn(step / self.config.steps)
        with timed(self.seconds, "env_wait"):
            try:
                result: StepResult = envs.step_wait()
            except EnvironmentFailure as failure:
                if failure.step_result is None:
                    raise
                self.failure, result = failure, failure.step_result  # from the remaining workers
        next_obs, reward, terminated, truncated, infos = result
        if infos["restarted"].any() and not state.begun_anew:
            state.restart_steps.append(step + 1)
        state.begun_anew = state.success_noted = False
        ended, lost = terminated | truncated, infos["restarted"]
        successor = infos["final_obs"] if ended.any() else next_obs
        learnt = reward if self._factors is None else reward * self._factors
        agent.observe(Transitions(obs, action, learnt, successor, terminated, truncated, lost))
        state.rollout.add(reward, infos["success"], ended & ~lost)
        state.rollout.drop(lost)
        state.obs = next_obs

    def catch_up(self, step: int, go_on: Callable[[], bool]) -> None:
        """Let an agent that is behind after `step` vector steps learn, as long as `go_on` agrees.

        `go_on` is asked before each piece of the work.
        """
        while self.state.behind and go_on():
            with timed(self.seconds, "update"):
                self.state.agent.learn(step / self.config.steps)


def reward_factors(envs: TaskVectorEnv) -> Floats | None:
    """Return the factors [T*E] of the rewards that an agent learns from; None: all are 1."""
    factors = envs.suite.reward_factors
    if not factors:
        return None
    by_task = [factors.get(name, 1.0) for name in envs.task_names]
    return np.repeat(np.array(by_task, dtype=np.float32), envs.envs_per_task)


@contextlib.contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the time spent inside the block to one entry of `seconds`."""
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] += time.perf_counter() - began
