"""params.yaml as frozen records: one section per stage, plus what several stages share (task, sim, policy).

Every default lives in params.yaml, none here, so what a run used can be read in one file. Unknown keys and values out of
range are refused with the key, what was found and what was expected.
"""

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from stages.errors import ParamsError

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class SimParams(Section):
    """The simulator, the same for every stage that runs it."""

    assets: Literal["auto", "libero", "primitive"]
    assets_dir: str | None  # a folder with LIBERO's meshes; null looks in LIBERO's own places
    renderer: Literal["auto", "osmesa", "egl"]
    image_size: Annotated[int, Field(ge=16, le=1024)]  # pixels, square
    shadows: bool
    multisampling: Annotated[int, Field(ge=0, le=16)]
    observe: Literal[
        "libero", "latest"
    ]  # image and proprioception two physics steps (4 ms) late as LIBERO's, or of now
    physics: Literal["exact", "lean"]  # LIBERO's states to the last bit; or without the work that only this needs
    action_repeat: Positive  # environment steps (20 Hz) for which one decision is held; OpenVLA uses 1
    settle_steps: NonNegative  # no-op environment steps after a reset; LIBERO's protocol has 10
    arm_noise: (
        NonNegativeFloat  # rad, standard deviation of the arm's joints at sampled starts; 0.02 at the official ones
    )
    egl_device: NonNegative | None  # which GPU renders; null takes MUJOCO_EGL_DEVICE_ID, else the first that works
    timeout_s: PositiveFloat  # a worker that is silent for longer is replaced, and its episode simulated again
    max_restarts: NonNegative  # replacements of workers in one episode before the rollout gives up

    def benchmark(self) -> "SimParams":
        """These params with images, settling and decisions as in LIBERO's published evaluation; assets and renderer stay."""
        return self.model_copy(
            update={
                "image_size": 256,
                "shadows": True,
                "multisampling": 4,
                "observe": "libero",
                "physics": "exact",
                "action_repeat": 1,
                "settle_steps": 10,
            }
        )


class VisionTowerParams(Section):
    width: Positive
    depth: Positive
    heads: Positive


class ArchitectureParams(Section):
    """Sizes of `openvla-tiny`; a checkpoint carries its own, these make a new one (`tgrpo sft`)."""

    patch_size: Positive
    stem: Literal["conv", "patch"]  # conv: a small convolutional stem in place of the linear patch embedding
    dinov2: VisionTowerParams
    siglip: VisionTowerParams
    hidden_size: Positive
    layers: Positive
    heads: Positive
    intermediate_size: Positive
    proprio: bool


class LoraParams(Section):
    rank: Positive
    alpha: Positive
    dropout: Fraction
    target_modules: str | list[str]  # all-linear, names of layers, or a regular expression for their whole names

    @field_validator("target_modules")
    @classmethod
    def _is_a_pattern(cls, value: str | list[str]) -> str | list[str]:
        try:
            re.compile(value if isinstance(value, str) else "")
        except re.error as error:
            raise ValueError(
                f"policy.lora.target_modules = {value!r} is no regular expression ({error}); expected all-linear or a list"
            ) from None
        return value


class PolicyParams(Section):
    """The policy that `rollout`, `update` and `eval` start from, and the adapter that `update` trains on it."""

    base: str  # a checkpoint folder, or a model of the Hugging Face hub: owner/name[@revision]; {task} is the task's id
    device: str  # auto, cpu, cuda, cuda:0
    dtype: Literal["auto", "float32", "bfloat16"]  # auto: float32 on a CPU, as stored elsewhere
    center_crop: bool  # of the published image pipeline; checkpoints of `tgrpo sft` see the camera's frame as it is
    sampling: Literal["action", "full"]  # among the 256 action tokens, or the whole vocabulary as OpenVLA's own code
    gradient_checkpointing: bool  # keep one activation a block while learning, and compute the others twice
    threads: Positive  # of torch while learning on a CPU; acting takes one, beside the environments' processes
    lora: LoraParams

    def base_of(self, task: str) -> str:
        """`base` for a task: `bases/{task}` is `bases/libero_object/6` for libero_object/6."""
        return self.base.replace("{task}", task)


class GenRewardParams(Section):
    program: Literal["goal", "key_poses"]  # the built-in one: see stages/rewards/builtin
    near_m: PositiveFloat  # hand to where the object is gripped; closer is `ready to grasp`
    approach_m: PositiveFloat  # closer than this is `approaching`
    lift_m: PositiveFloat  # higher above its start than this is `lifted`
    above_m: PositiveFloat  # horizontal distance to the basket that counts as above it
    model: str  # an id of the Messages API
    max_tokens: Positive  # of one reply
    temperature: Fraction | None  # null: not sent
    rounds: Positive  # replies at most
    timeout_s: PositiveFloat  # of silence
    max_retries: NonNegative


class DemosParams(Section):
    episodes: Positive
    noise: NonNegativeFloat  # standard deviation of the action noise while the expert approaches, in action units
    arm_noise: (
        NonNegativeFloat  # rad, in place of sim.arm_noise; 0 starts them from LIBERO's own resets, all at one pose
    )
    workers: Positive


class SftParams(Section):
    updates: Positive
    batch_size: Positive
    lr: PositiveFloat
    weight_decay: NonNegativeFloat
    warmup: NonNegative
    image_shift: NonNegative  # random shift augmentation, pixels
    architecture: ArchitectureParams


class RolloutParams(Section):
    envs: Positive  # G, trajectories per group
    groups: Positive  # groups per iteration, each from an initial state of its own
    parallel: Positive  # groups sampled side by side; the result does not depend on it
    temperature: NonNegativeFloat
    max_env_steps: NonNegative  # 0 takes the suite's own limit
    stop: Literal["first", "each"]


# Tasks of each suite of LIBERO, which params must be readable without.
_TASKS = {"libero_spatial": 10, "libero_object": 10, "libero_goal": 10, "libero_10": 10, "libero_90": 90}


class AdvantageWeights(Section):
    a1: NonNegativeFloat
    a2: NonNegativeFloat


class AdvantageParams(Section):
    weights: Literal["manual", "auto"]  # a1 and a2 as given, or from each group's own signal-to-noise ratio
    a1: NonNegativeFloat  # weight of the step-level advantage S (eq. 6, 8)
    a2: NonNegativeFloat  # weight of the trajectory-level advantage T (eq. 7, 8)
    per_task: dict[str, AdvantageWeights]  # tasks with weights of their own, as in the paper's table 3
    group_by: Literal["step", "milestone"]  # what S compares: rewards of one time step, or of one milestone
    hold_success: bool  # a trajectory that ended in success keeps its last reward until the group's end
    min_return_std: NonNegativeFloat  # groups whose returns deviate less get zero advantage and are left out
    zero_variance: Literal["drop", "keep"]  # equal returns, advantages of zero: leave them out, or keep their KL

    @field_validator("per_task")
    @classmethod
    def _names_tasks(cls, given: dict[str, AdvantageWeights]) -> dict[str, AdvantageWeights]:
        """A name that no task has would leave its weights unused without a word."""
        for name in given:
            suite, _, index = name.partition("/")
            if index not in map(str, range(_TASKS.get(suite, 0))):
                raise ValueError(
                    f"{name!r} is no task; name it by suite and index, such as libero_object/6 (suites: {', '.join(_TASKS)})"
                )
        return given

    @model_validator(mode="after")
    def _weighs_something(self) -> "AdvantageParams":
        given: dict[str, AdvantageParams | AdvantageWeights] = {"advantage": self, **self.per_task}
        for name, weights in given.items():
            if weights.a1 == 0 and weights.a2 == 0:
                raise ValueError(
                    f"{name} has a1 = 0 and a2 = 0, so every advantage would be zero; give at least one a positive weight"
                )
        return self

    def weights_of(self, task: str) -> tuple[float, float]:
        """a1 and a2 for a task: its own where `per_task` has some."""
        own = self.per_task.get(task)
        return (own.a1, own.a2) if own else (self.a1, self.a2)


class PPOParams(Section):
    """What only PPO has: a critic on the policy's features (arXiv:1707.06347) and GAE (arXiv:1506.02438)."""

    clip: NonNegativeFloat  # of its ratio, in place of update.clip, which may be 0 for eq. 9
    lr: PositiveFloat | None  # null: update.lr
    gae_lambda: Fraction
    value_lr: PositiveFloat
    value_clip: (
        NonNegativeFloat  # how far a value may move from the one it had before the update; 0: as far as it likes
    )


class GRPOParams(Section):
    """What only GRPO has (arXiv:2402.03300)."""

    clip: NonNegativeFloat  # of its ratio, in place of update.clip, which may be 0 for eq. 9


class GrapeParams(Section):
    """What only GRAPE has: trajectory-wise preference optimisation (arXiv:2411.19309)."""

    beta: PositiveFloat  # of the preference loss: how much a log-ratio counts, per trajectory


Algo = Literal["tgrpo", "tgrpo_no_s", "tgrpo_no_t", "grpo", "reinforce", "ppo", "grape", "sft"]


class UpdateParams(Section):
    algo: Algo  # also decides what `tgrpo advantage` computes
    objective: Literal["ratio", "log_prob"]  # eq. 9 (eq. 3 with a clip), or -E[A log pi]
    schedule: Literal["step", "minibatch", "group"]  # an optimiser update per time step, per minibatch, per pass
    max_off_policy_kl: NonNegativeFloat  # nats a token from the sampling policy; 0: only the checkpoint that sampled
    gamma: Fraction  # discount of returns, of ppo and reinforce
    ppo: PPOParams
    grpo: GRPOParams
    grape: GrapeParams
    lr: PositiveFloat
    weight_decay: NonNegativeFloat
    epochs: Positive
    minibatch: Positive  # decisions per optimiser update
    micro_batch: NonNegative  # decisions per forward and backward pass; 0 takes as many as memory_gb allows
    memory_gb: (
        PositiveFloat | None
    )  # GiB that a pass may take besides the weights; null: nine tenths of the free memory
    clip: NonNegativeFloat  # of tgrpo and its ablations; 0 is the unclipped ratio of eq. 9
    ratio: Literal["token", "action"]
    beta: NonNegativeFloat  # weight of the KL to the reference policy
    kl: Literal["k1", "k3", "exact"]
    max_grad_norm: PositiveFloat


class EvalParams(Section):
    starts: Literal["official", "validation"]  # LIBERO's 50, or sampled ones that training does not use either
    episodes: Annotated[int, Field(ge=1, le=50)]
    repeats: Positive  # times over, each with its own sampling seed; once where the policy acts greedily
    temperature: NonNegativeFloat  # 0 is greedy
    envs: Positive
    max_env_steps: NonNegative  # 0 takes the suite's own limit
    videos: NonNegative  # episodes to film


class ValidationParams(Section):
    """Episodes from start states of their own, neither trained on nor official, by which progress is judged."""

    every: NonNegative  # iterations; 0: never, and the last checkpoint counts as the best
    episodes: Positive
    temperature: NonNegativeFloat


class GuardParams(Section):
    """When a run ends before its last iteration."""

    solved: Fraction  # validation success that is good enough
    patience: NonNegative  # validations in a row without a new best before it counts as stuck; 0: any number
    idle: NonNegative  # iterations in a row with nothing to learn from (solved where all succeed, else stuck); 0: any number
    max_kl: PositiveFloat  # nats a token to the reference policy
    min_entropy: NonNegativeFloat  # nats a token of the sampled actions


class TrainParams(Section):
    iterations: Positive
    eval_temperatures: Annotated[list[NonNegativeFloat], Field(min_length=1)]  # at which both ends are evaluated
    keep: Literal["near_best", "best", "last"]  # which checkpoint is evaluated at the end: see `guard.kept`
    validation: ValidationParams
    guard: GuardParams
    tensorboard: bool  # event files in the run's folder
    wandb: str | None  # a project of Weights & Biases to log to as well; needs the package


class LoopStep(Section):
    """Iteration `k` of the DVC pipeline starts from the checkpoint of `prev`; both are names of three digits."""

    k: Annotated[str, Field(pattern=r"^\d{3}$")]
    prev: Annotated[str, Field(pattern=r"^\d{3}$")]


class LoopParams(Section):
    iterations: Annotated[list[LoopStep], Field(min_length=1)]
    last: str

    @model_validator(mode="after")
    def _is_a_chain(self) -> "LoopParams":
        names = ["000", *(step.k for step in self.iterations)]
        for number, (step, prev) in enumerate(zip(self.iterations, names, strict=False), start=1):
            if step.k != f"{number:03d}" or step.prev != prev:
                raise ValueError(
                    f"entry {number} of loop.iterations is {step.prev} -> {step.k}, expected {prev} -> {number:03d}"
                )
        if self.last != names[-1]:
            raise ValueError(f"loop.last is {self.last}, but the last of loop.iterations is {names[-1]}")
        return self


class Params(Section):
    """All of params.yaml."""

    seed: NonNegative
    task: str
    sim: SimParams
    policy: PolicyParams
    gen_reward: GenRewardParams
    demos: DemosParams
    sft: SftParams
    rollout: RolloutParams
    advantage: AdvantageParams
    update: UpdateParams
    eval: EvalParams
    train: TrainParams
    loop: LoopParams


DEFAULT, CPU = Path("params.yaml"), "cpu"  # the default file is a profile too, and this is its name
PROFILES = Path("params")  # the other profiles, by their names


def load_params(path: Path, overrides: list[str] | None = None) -> Params:
    """Reads a params file, or a profile by its name, and applies `section.key=value` overrides (values in YAML), in order.

    Raises:
        ParamsError: no such file, not YAML, an unknown key, a wrong type, or a value out of range.
    """
    if not path.suffix and not path.exists():
        path = DEFAULT if str(path) == CPU else PROFILES / f"{path}.yaml"
    try:
        data = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        profiles = ", ".join([CPU, *sorted(profile.stem for profile in PROFILES.glob("*.yaml"))])
        raise ParamsError(
            f"{path} does not exist; run inside the project's folder or name the file with --params (profiles: {profiles})"
        ) from None
    except yaml.YAMLError as error:
        raise ParamsError(f"{path} is not valid YAML: {_one_line(error)}") from None
    if not isinstance(data, dict):
        raise ParamsError(f"{path} holds no mapping of sections; see the params.yaml that the project ships")
    for override in overrides or []:
        _apply_override(data, override)
    try:
        return Params.model_validate(data)
    except ValidationError as error:
        raise ParamsError(f"{path}: {_explain(error)}") from None


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals:
        raise ParamsError(f"--set {override}: expected section.key=value, such as advantage.a1=0.3")
    *parents, last = key.split(".")
    node = data
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None  # type: ignore[assignment]
        if not isinstance(node, dict):
            raise ParamsError(f"--set {override}: there is no section {parent!r} in {key!r}")
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ParamsError(f"--set {override}: {value!r} is not valid YAML ({_one_line(error)}); quote it") from None
    _for_every_task(data, key, node[last])


def _for_every_task(data: dict[str, Any], key: str, value: Any) -> None:
    """A weight that is asked for by hand comes before that of single tasks, whose other weight stays."""
    section, _, weight = key.partition(".")
    own = data[section].get("per_task") if key in ("advantage.a1", "advantage.a2") else None
    for weights in own.values() if isinstance(own, dict) else ():
        if isinstance(weights, dict):
            weights[weight] = value


def _one_line(error: yaml.YAMLError) -> str:
    return " ".join(str(error).split())


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(first["loc"][-1]), _known_keys(first["loc"][:-1]), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(_known_keys(first['loc'][:-1]))}"
        return f"{where} is not a known key{hint}{more}"
    if first["type"] == "missing":
        return f"{where} is missing{more}"
    if first["type"] == "value_error":
        return f"{first['ctx']['error']}{more}"
    return f"{where} = {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}{more}"


def _known_keys(path: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Params
    for part in path:
        annotation = model.model_fields[str(part)].annotation
        assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
        model = annotation
    return list(model.model_fields)
