"""The straightforward way: plain modules, one backward pass per task, the published solver on the host."""

import importlib.util
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mtrl.agents.sac.replay import Batch
from mtrl.envs import ACTION_SIZE, OBS_SIZE
from mtrl_benchmarks import report
from mtrl_benchmarks._published import NashByLinearisation, cagrad_by_slsqp
from mtrl_benchmarks._updates import Problem

Solver = Callable[[Tensor], Tensor]  # Gramian [T, T] -> weights [T] on the host

_ALPHA, _GAMMA, _TAU, _LR = 0.1, 0.99, 0.005, 3e-4


def make(problem: Problem, method: str) -> Callable[[], None] | None:
    """Return one update, sampling included, or None where no reference of `method` exists or can run."""
    if method == "mean":
        return _Reference(problem, None).update
    if method not in _SOLVERS:
        return None
    package, solver = _SOLVERS[method]
    if importlib.util.find_spec(package) is None:
        report.note(f"left out per-task backward with {method}: pip install {package}")
        return None
    return _Reference(problem, solver(problem.tasks)).update


def _mlp(inputs: int, outputs: int, problem: Problem) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(problem.depth):
        layers += [nn.Linear(inputs, problem.width), nn.ReLU()]
        inputs = problem.width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs)).to(problem.device)


class _Reference:
    """Multi-task SAC from plain modules; the solver maps a Gramian [T, T] to task weights [T]."""

    def __init__(self, problem: Problem, solver: Solver | None) -> None:
        self.problem, self.solver = problem, solver
        self.replay = problem.replay()
        inputs = OBS_SIZE + problem.tasks
        self.actor = _mlp(inputs, 2 * ACTION_SIZE, problem)
        self.critics = nn.ModuleList(_mlp(inputs + ACTION_SIZE, 1, problem) for _ in range(2))
        self.targets = nn.ModuleList(_mlp(inputs + ACTION_SIZE, 1, problem) for _ in range(2))
        self.log_alpha = nn.Parameter(torch.full((problem.tasks,), _ALPHA, device=problem.device).log())
        learned: list[list[nn.Parameter]] = [
            list(self.actor.parameters()),
            list(self.critics.parameters()),
            [self.log_alpha],
        ]
        self.optimizers = [torch.optim.Adam(parameters, lr=_LR) for parameters in learned]
        identity = torch.eye(problem.tasks, device=problem.device)
        self.identity = identity.unsqueeze(1).expand(-1, problem.batch_per_task, -1)

    def update(self) -> None:
        """Sample and step critics, actor, temperatures and targets once."""
        batch = self.replay.sample(self.problem.batch_per_task)
        alpha = self.log_alpha.detach().exp().unsqueeze(1)
        with torch.no_grad():
            action, log_prob = self._sample(batch.next_obs)
            next_q = torch.minimum(*self._q(self.targets, batch.next_obs, action))
            target = batch.reward + _GAMMA * batch.not_terminated * (next_q - alpha * log_prob)
        first, second = self._q(self.critics, batch.obs, batch.action)
        losses = ((first - target).square() + (second - target).square()).mean(1)
        self._descend(losses, list(self.critics.parameters()), self.optimizers[1])
        self._step_actor(batch, alpha)
        with torch.no_grad():
            pairs = zip(self.targets.parameters(), self.critics.parameters(), strict=True)
            for old, new in pairs:
                old.lerp_(new, _TAU)

    def _step_actor(self, batch: Batch, alpha: Tensor) -> None:
        action, log_prob = self._sample(batch.obs)
        q = torch.minimum(*self._q(self.critics, batch.obs, action))
        self._descend((alpha * log_prob - q).mean(1), list(self.actor.parameters()), self.optimizers[0])
        self.optimizers[2].zero_grad()
        (-self.log_alpha * (log_prob.detach().mean(1) - ACTION_SIZE)).sum().backward()
        self.optimizers[2].step()

    def _sample(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.actor(torch.cat((obs, self.identity), -1)).chunk(2, -1)
        normal = torch.distributions.Normal(mean, log_std.clamp(-20.0, 2.0).exp())
        before = normal.rsample()
        action = before.tanh()
        squash = (1.0 - action.square() + 1e-6).log()
        return action, (normal.log_prob(before) - squash).sum(-1)

    def _q(self, critics: nn.ModuleList, obs: Tensor, action: Tensor) -> list[Tensor]:
        inputs = torch.cat((obs, self.identity, action), -1)
        return [critic(inputs).squeeze(-1) for critic in critics]

    def _descend(
        self, losses: Tensor, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> None:
        optimizer.zero_grad()
        if self.solver is None:
            losses.mean().backward()
        else:
            rows = []
            for loss in losses:
                gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
                rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
            jacobian = torch.stack(rows)
            direction = self.solver(jacobian @ jacobian.T).to(jacobian) @ jacobian
            start = 0
            for parameter in parameters:
                stop = start + parameter.numel()
                parameter.grad = direction[start:stop].view_as(parameter)
                start = stop
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()


def _cagrad(tasks: int) -> Solver:
    c = 0.9
    return lambda gram: cagrad_by_slsqp(gram, c) / (1.0 + c**2)


_SOLVERS: dict[str, tuple[str, Callable[[int], Solver]]] = {  # the package a solver needs, and how to make it
    "cagrad": ("scipy", _cagrad),
    "nash_mtl": ("cvxpy", NashByLinearisation),
}
