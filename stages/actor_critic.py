"""What PPO has besides the policy's objective: a critic, advantages by GAE, and the critic's own optimiser.

PPO (Schulman et al., arXiv:1707.06347) with GAE (arXiv:1506.02438). TGRPO's paper compares with PPO and prints no details of
it but the learning rate (A.1.2). Read here as: one actor and a value head on its features, the recorded multi-milestone
rewards, advantages normalised over the update, the clipped surrogate, the critic's loss with a clip.

The end of a trajectory. A trajectory that was cut off (the time limit, or with `stop: first` another's success) is not over:
what would have come counts as the critic's value of the last thing seen. Nothing was seen after its last decision, so that
decision is not learnt from, and the value of what it saw stands at the end of the one before. A success is over and pays
nothing more; with `advantage.hold_success` it goes on paying its last reward, r / (1 - gamma) in all, since otherwise a
policy that hovers over the basket for ever would be worth more than one that finishes.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.algo.gae import explained_variance, gae, normalised
from stages.algo.value_loss import value_loss
from stages.decisions import Decisions
from stages.errors import DivergedError, MismatchError, ParamsError
from stages.params import UpdateParams
from stages.policy.critic import Critic


class ActorCritic:
    """A critic beside the policy, with an AdamW of its own (`update.ppo.value_lr`)."""

    def __init__(self, critic: Critic, params: UpdateParams) -> None:
        self.critic = critic
        self.explained_variance = float("nan")  # of the values before the update, see `weigh`
        self._params = params
        self._optimizer = torch.optim.AdamW(critic.parameters(), lr=params.ppo.value_lr, weight_decay=0.0)
        self._target = self._old_value = torch.empty(0)
        self._clip = 0.0

    @torch.no_grad()
    def weigh(self, decisions: Decisions, state: Tensor) -> Decisions:
        """The decisions to learn from, with GAE's advantages, normalised, and the same say for each.

        Args:
            decisions: every decision taken, each trajectory's in order.
            state: (B, features) `TokenScores.state` of each, under the policy as it is before the update, on the CPU.

        Raises:
            ParamsError: `hold_success` with `update.gamma` 1, where a success would be worth infinitely much.
            MismatchError: every trajectory was cut off after one decision.
        """
        p = self._params
        if decisions.hold_success and p.gamma == 1:
            raise ParamsError(
                "update.gamma = 1 with advantage.hold_success makes a success infinitely valuable to ppo; set update.gamma "
                "below 1, such as 0.99, or advantage.hold_success=false"
            )
        device = self.critic.mean.device
        state = state.to(device)
        if self.critic.is_new:
            self.critic.start_at(float(decisions.reward.mean()) / (1 - p.gamma) if p.gamma < 1 else 0.0)
        value = self.critic.value(state).cpu().numpy()
        kept, advantage = advantages(decisions, value, p.gamma, p.ppo.gae_lambda)
        if not len(kept):
            raise MismatchError(
                "every trajectory was cut off after one decision, which leaves ppo nothing to learn from; sample longer ones "
                "(rollout.max_env_steps)"
            )
        target = advantage + value[kept]
        self.explained_variance = explained_variance(value[kept], target)
        self._clip = 0.0 if self.critic.is_new else p.ppo.value_clip  # a constant is no value to stay close to
        self.critic.follow(torch.from_numpy(target).to(device))
        self._target = self.critic.normalised(torch.from_numpy(target).to(device))
        self._old_value = self.critic(state[torch.from_numpy(kept).to(device)])
        weighed = replace(decisions.take(kept), advantage=normalised(advantage).astype(np.float32))
        return replace(weighed, weight=np.ones(len(kept), np.float32))

    @property
    def ready(self) -> bool:
        """Whether there are targets to learn from: `weigh` has been called."""
        return len(self._target) > 0

    def loss(self, state: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """The critic's loss over rows of what `weigh` returned, in squared deviations of the returns; differentiable."""
        at = torch.from_numpy(rows).to(state.device)
        return value_loss(self.critic(state), self._target[at], self._old_value[at], self._clip)

    def forget_gradients(self) -> None:
        """Before a minibatch."""
        self._optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Takes one optimiser step on the gradients of `loss`.

        Raises:
            DivergedError: they are not finite.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.critic.parameters(), self._params.max_grad_norm)
        if not torch.isfinite(norm):
            raise DivergedError(
                f"the critic's gradient became {norm.item()}; the last checkpoint is untouched: lower update.ppo.value_lr"
            )
        self._optimizer.step()

    def stored(self) -> dict[str, Tensor]:
        """The critic and AdamW's moments, on the CPU, by name."""
        found = {f"critic/{name}": tensor for name, tensor in self.critic.stored().items()}
        for name, parameter in self.critic.named_parameters():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                found[f"optimizer/{name}/{key}"] = value.detach().to("cpu", copy=True).contiguous()
        return found

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes up what `stored` gave.

        Raises:
            MismatchError: it is the critic of another policy.
        """
        parameters = dict(self.critic.named_parameters())
        weights = {name.removeprefix("critic/"): value for name, value in state.items() if name.startswith("critic/")}
        expected = {name: value.shape for name, value in self.critic.state_dict().items()}
        if {name: value.shape for name, value in weights.items()} != expected:
            raise MismatchError(
                "the checkpoint's critic was made for another policy (other names or sizes of weights); remove its "
                "critic.safetensors to begin with a new critic"
            )
        self.critic.restore(weights)
        for name, value in state.items():
            if name.startswith("optimizer/"):
                parameter, _, entry = name.removeprefix("optimizer/").rpartition("/")
                at = (
                    value.device if entry == "step" else parameters[parameter].device
                )  # see Learner.load_optimizer_state
                self._optimizer.state[parameters[parameter]][entry] = value.to(at, copy=True)


def advantages(
    decisions: Decisions, value: NDArray[np.float64], gamma: float, lam: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """GAE along every trajectory, with the ends that this module's docstring describes.

    Args:
        value: (B,) V of what each decision saw.

    Returns:
        kept (K,), the rows with an advantage, in order; and these advantages (K,), in the unit of the rewards.
    """
    kept, found = [], []
    for trajectory in np.unique(decisions.trajectory):
        rows = np.flatnonzero(decisions.trajectory == trajectory)
        last = rows[-1]
        if decisions.success[last]:
            after = float(decisions.reward[last]) / (1 - gamma) if decisions.hold_success else 0.0
        else:
            rows, after = rows[:-1], float(value[last])
        kept.append(rows)
        found.append(gae(decisions.reward[rows], value[rows], after, gamma, lam))
    return np.concatenate(kept), np.concatenate(found)
