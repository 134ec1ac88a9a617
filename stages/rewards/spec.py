"""A reward as data: which program, for which object and container, with which thresholds."""

import hashlib
import inspect
import json
from dataclasses import asdict, dataclass
from typing import Any

from stages.errors import ArtifactError, ParamsError
from stages.params import GenRewardParams
from stages.rewards.interface import RewardProgram
from stages.rewards.library import pick_place

LIBRARY = {"pick_place_in_basket": pick_place}


@dataclass(frozen=True)
class RewardSpec:
    """Everything that decides a reward. It is small, so every group carries the whole of it."""

    program: str
    target: str
    container: str
    thresholds: dict[str, float]  # metres
    source_sha256: str  # of the program's source, so that a group is never re-scored by other code unawares

    @classmethod
    def builtin(cls, params: GenRewardParams, target: str, container: str) -> "RewardSpec":
        """The library's program with the thresholds of params.

        Raises:
            ParamsError: no such program.
        """
        if params.program not in LIBRARY:
            raise ParamsError(
                f"gen_reward.program = {params.program!r}: expected one of the library, {', '.join(sorted(LIBRARY))}"
            )
        thresholds = {
            "near": params.near_m,
            "approach": params.approach_m,
            "lift": params.lift_m,
            "above": params.above_m,
        }
        return cls(params.program, target, container, thresholds, _source_digest(params.program))

    @classmethod
    def from_json(cls, data: dict[str, Any], where: str) -> "RewardSpec":
        """Reads what `to_json` wrote.

        Raises:
            ArtifactError: a program that this installation does not have, or has in another version.
        """
        try:
            spec = cls(**data)
        except TypeError:
            raise ArtifactError(f"{where} is not a reward; write one with `tgrpo gen-reward`") from None
        if spec.program not in LIBRARY:
            raise ArtifactError(f"{where} names the program {spec.program!r}, which is not in the library")
        if spec.source_sha256 != _source_digest(spec.program):
            raise ArtifactError(
                f"{where} was written for another version of {spec.program}; write it again with `tgrpo gen-reward`"
            )
        return spec

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def build(self) -> RewardProgram:
        return pick_place.PickPlaceReward(**self.thresholds)


def program_source(program: str) -> str:
    """The source text of a library program, which `gen-reward` keeps beside the spec for people to read."""
    return inspect.getsource(LIBRARY[program])


def _source_digest(program: str) -> str:
    return hashlib.sha256(program_source(program).encode()).hexdigest()
