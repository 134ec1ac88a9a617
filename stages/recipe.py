"""What each `update.algo` minimises: one record, read from params, that the learner follows.

| algo | its source | what multiplies the policy's term, and where this departs |
| --- | --- | --- |
| tgrpo | arXiv:2506.08440, eq. 8 and 9 | a1 S + a2 T |
| tgrpo_no_s, tgrpo_no_t | its ablations | T alone, S alone |
| grpo | DeepSeekMath, arXiv:2402.03300, eq. 3 | eq. 5 of the 0/1 outcome, the same for all decisions; its own clip |
| reinforce | Williams 1992 | the standardised discounted reward to go; `log_prob`, one pass whatever `update.epochs` says |
| ppo | arXiv:1707.06347 | GAE from a critic, see `actor_critic`; its clip and learning rate are its own, `update.ppo` |
| grape | arXiv:2411.19309 | the pull of ranked pairs at a whole trajectory, see `preferences` |
| sft | behaviour cloning | 1 on the decisions of trajectories that succeeded: cross-entropy on their tokens |

TGRPO and GRPO average within a trajectory first (1/|o_i|, eq. 3 and 9); in REINFORCE, PPO and cloning every decision has
the same say, as in their papers. `update.beta` weighs a KL to the reference policy in all of them but `grape`, whose loss
has the reference in it, and `sft`, which has none.
"""

from dataclasses import dataclass
from typing import Literal

from stages.errors import ParamsError
from stages.params import Algo, Params, UpdateParams

BY_TRAJECTORY = ("tgrpo", "tgrpo_no_s", "tgrpo_no_t", "grpo")  # averaged within a trajectory first
COMPARES_NOTHING: tuple[Algo, ...] = ("ppo", "sft")  # baseline by a critic, or none
WHOLE_TRAJECTORIES = ("ppo", "grape")  # need every decision, also one whose advantage is zero


@dataclass(frozen=True)
class Recipe:
    """The objective and how it is gone through; see `policy_loss` for what the names mean."""

    objective: Literal["ratio", "log_prob"]
    per: Literal["token", "action"]
    epsilon: float
    beta: float
    passes: int
    schedule: Literal["step", "minibatch", "group", "trajectories"]


def recipe_of(params: UpdateParams) -> Recipe:
    """The recipe of params' algo."""
    p = params
    if p.algo == "grape":
        # Pairs compare whole trajectories of one group, so a group is the least that an optimiser update can take.
        whole: Literal["group", "trajectories"] = "group" if p.schedule == "group" else "trajectories"
        return Recipe("log_prob", "action", 0.0, 0.0, p.epochs, whole)
    if p.algo == "sft":
        return Recipe("log_prob", "token", 0.0, 0.0, p.epochs, p.schedule)
    if p.algo == "reinforce":
        return Recipe("log_prob", p.ratio, 0.0, p.beta, 1, p.schedule)
    if p.algo == "ppo":
        return Recipe("ratio", p.ratio, p.ppo.clip, p.beta, p.epochs, p.schedule)
    clip = p.grpo.clip if p.algo == "grpo" else p.clip
    return Recipe(p.objective, p.ratio, clip if p.objective == "ratio" else 0.0, p.beta, p.epochs, p.schedule)


def learning_rate(params: UpdateParams) -> float:
    """Of the policy's weights."""
    return params.ppo.lr if params.algo == "ppo" and params.ppo.lr is not None else params.lr


def refuse_unusable(params: Params) -> None:
    """Raises ParamsError for what a run of `tgrpo train` would stumble over only after it has sampled and evaluated."""
    algo, p = params.update.algo, params.rollout
    if p.envs < 2 and algo not in COMPARES_NOTHING:
        raise ParamsError(
            f"rollout.envs = {p.envs}, and {algo} compares the trajectories of a group; set rollout.envs=4"
        )
    if p.temperature == 0:
        raise ParamsError(
            "rollout.temperature = 0 acts greedily, which no ratio of probabilities can learn from; set rollout.temperature=1"
        )
    if algo == "ppo" and params.update.gamma == 1 and params.advantage.hold_success:
        raise ParamsError(
            "update.gamma = 1 gives a held success no end to its value; set update.gamma=0.99 or advantage.hold_success=false"
        )
    if params.policy.lora.dropout:
        raise ParamsError(
            f"policy.lora.dropout = {params.policy.lora.dropout:g}, and the ratio of eq. 4 would compare two masks rather than "
            "two policies; set it to 0"
        )


def remarks(params: UpdateParams) -> list[str]:
    """What a user should know about params that do not do what they seem to, one line each."""
    p, recipe = params, recipe_of(params)
    said = []
    if recipe.beta > 0 and p.kl == "k1":
        said.append(
            "update.kl=k1 has no gradient in expectation, so update.beta does not hold the policy back and only adds noise; "
            "set update.kl to exact or k3"
        )
    if recipe.passes != p.epochs:
        said.append(
            f"update.algo={p.algo} takes one pass, because its gradient is that of the policy which sampled; "
            f"update.epochs={p.epochs} does not count"
        )
    elif recipe.objective == "log_prob" and p.algo not in ("sft", "grape") and p.epochs > 1:
        said.append(
            f"update.objective=log_prob with update.epochs={p.epochs}: after the first pass the data are another policy's, "
            "and nothing corrects for it; set update.epochs=1 or update.objective=ratio"
        )
    if p.algo == "grape" and p.schedule != "group":
        said.append(
            f"update.schedule={p.schedule}: grape compares whole trajectories, so it takes an optimiser update per group"
        )
    return said


def averages_trajectories(algo: Algo | str) -> bool:
    """Whether the objective averages within a trajectory before it averages trajectories."""
    return algo in BY_TRAJECTORY


def needs_all_decisions(algo: Algo | str) -> bool:
    """Whether decisions count that have no advantage in their artifact."""
    return algo in WHOLE_TRAJECTORIES
