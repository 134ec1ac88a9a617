"""`tgrpo advantage`: groups -> advantages, as `update.algo` wants them. Needs neither torch nor the simulator."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from stages.describe import describe
from stages.params import Params
from stages.reporting import Reporter, Silent
from stages.store.advantages import write_advantages
from stages.store.groups import Group, open_group
from stages.store.handles import Handle
from stages.store.provenance import reference
from stages.store.schema import AdvantagesAttrs
from stages.weighing import return_std, weigh
from stages.workspace import next_path


def weigh_group(
    group: Group,
    params: Params,
    out: Path,
    digest: str | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Handle:
    """The core: computes one group's advantages for `update.algo` and writes them to `out`.

    Args:
        digest: the group's, where it is known already.
        reporter: is told when the group is left out, and why.

    Raises:
        MismatchError, ArtifactError: as `weigh`.
    """
    weighed = weigh(group, params.advantage, params.update)
    write_advantages(
        out,
        AdvantagesAttrs(
            task=group.attrs.task,
            algo=params.update.algo,
            a1=weighed.a1,
            a2=weighed.a2,
            used=not weighed.left_out,
            left_out=weighed.left_out,
            return_std=return_std(weighed.returns),
            iteration=group.attrs.iteration,
            inputs={"group": reference(group.path, out, digest)},
            params=params.model_dump(include={"advantage": True, "update": {"algo", "gamma"}}),
        ),
        step_advantage=weighed.step,
        trajectory_advantage=weighed.trajectory,
        advantage=weighed.advantage,
        returns=weighed.returns,
        success=weighed.success,
        mask=weighed.mask,
        overwrite=overwrite,
    )
    if weighed.left_out:
        (reporter or Silent()).note(f"{group.path} is left out: {weighed.left_out}")
    return describe(out)


def advantages(
    params: Params,
    groups: Iterable[Handle],
    out: Path | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Iterator[Handle]:
    """Computes the advantages of each group as its handle arrives.

    When every group is left out, that is said at the end and is no error: in a loop the next groups may differ again,
    and `tgrpo update` leaves the policy as it is.

    Args:
        out: the path of the artifact when it ends in `.zarr`, else the folder for them; None numbers them under
            data/advantages.
    """
    reporter = reporter or Silent()
    done = used = 0
    for handle in groups:
        path = out or next_path("advantages", ".zarr")
        path = path if path.suffix == ".zarr" else path / handle.path.name
        weighed = weigh_group(open_group(handle.path), params, path, handle.digest, overwrite, reporter)
        done, used = done + 1, used + weighed.extra["used"]
        yield weighed
    if done and not used:
        reporter.note(
            f"nothing to learn from in {'the group' if done == 1 else f'any of the {done} groups'}; sample others (a higher "
            "rollout.groups or rollout.envs), or look at one with `tgrpo inspect`"
        )
