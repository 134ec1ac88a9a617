"""The handle of any artifact: what it is, and the few facts that a person, `jq` or the next stage wants on the line."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.errors import ArtifactError, UsageError
from stages.store.handles import Handle, handle_for
from stages.store.provenance import MANIFEST, is_published, read_provenance, resolve_reference
from stages.workspace import locate


def describe(path: Path) -> Handle:
    """The handle of the artifact at `path`, with the summary of its kind.

    Raises:
        ArtifactError: nothing there, or no whole artifact.
    """
    record = read_provenance(path)
    summaries = {
        "group": _group,
        "advantages": _advantages,
        "checkpoint": _checkpoint,
        "eval": _evaluation,
        "train": _evaluation_pair,
        "reward": _reward,
        "report": _report,
    }
    summarise = summaries.get(record["kind"])
    return handle_for(path, summarise(path, record) if summarise else {})


def expand(paths: list[Path], kind: str, command: str) -> Iterator[Handle]:
    """Handles for the paths on a command's line; a plain folder stands for the artifacts in it, by name.

    Raises:
        UsageError: an artifact of another kind.
        ArtifactError: a path that is neither an artifact nor a folder of artifacts.
    """
    for path in map(locate, paths) if kind == "checkpoint" else paths:
        artifact = (path / "zarr.json").exists() or (path / MANIFEST).exists() or is_published(path)
        if not path.is_dir() or artifact:
            found = [path]
        else:
            found = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
            if not found:
                raise ArtifactError(f"{path} holds no artifacts; expected a {kind} or a folder of them")
        for entry in found:
            handle = describe(entry)
            if handle.kind != kind:
                raise UsageError(f"tgrpo {command} needs a {kind}, but {entry} is of kind {handle.kind!r}")
            yield handle


def _group(path: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    summary = record["summary"]
    return {
        "initial_state": record["initial_state"],
        "successes": summary["successes"],
        "mean_return": round(summary["mean_return"], 3),
        "mean_length": round(summary["mean_length"], 3),
        **({"incomplete": True} if record.get("complete") is False else {}),
        **_links(path, record, "checkpoint"),
    }


def _advantages(path: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "algo": record["algo"],
        "a1": record["a1"],
        "a2": record["a2"],
        "used": record["used"],
        "return_std": round(record["return_std"], 3),
        **_links(path, record, "group"),
    }


def _reward(path: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    details = record["details"]
    return {"origin": details["origin"], "verdict": details["verdict"]}


def _report(path: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    details = record["details"]
    return {"passed": details["passed"], "verdict": details["verdict"], "reward_digest": details["reward_digest"]}


def _checkpoint(path: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    details = record["details"]
    return {"iteration": details["iteration"], **_agreement(details.get("agreement")), **_links(path, record, "parent")}


def _agreement(compared: Mapping[str, Any] | None) -> dict[str, int]:
    """Of an export: on how many frames it was compared with its adapter, and how many tokens were equal."""
    if not compared:
        return {}
    equal = compared["greedy_equal"] + compared["sampled_equal"]
    return {"frames": compared["frames"], "tokens": compared["tokens"], "tokens_equal": equal}


def _evaluation(path: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    if record["details"].get("incomplete"):  # the simulator crashed too often: there is no rate to tell
        episodes = json.loads((path / "episodes.json").read_text())
        crashes = sum(episode["crashed"] for episode in episodes)
        return {"incomplete": True, "crashes": crashes, "played": len(episodes)} | _links(path, record, "checkpoint")
    summary = {"crashes": 0, "repeats": 1, "starts": "official"} | json.loads((path / "summary.json").read_text())
    fields = ("successes", "episodes", "success_rate", "low", "high", "crashes", "temperature", "repeats", "starts")
    return {name: _rounded(summary[name]) for name in fields} | _links(path, record, "checkpoint")


def _evaluation_pair(path: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    summary = json.loads((path / "summary.json").read_text())
    return {
        "iterations": summary["iterations"],
        "before": [_rounded(evaluation["success_rate"]) for evaluation in summary["before"]],
        "after": [_rounded(evaluation["success_rate"]) for evaluation in summary["after"]],
        "p": [_rounded(row["p"]) for row in summary["comparison"]],
        "ending": summary["ending"]["kind"],
        "kept": summary["kept"],
    }


def _rounded(value: float | int) -> float | int:
    return round(value, 4) if isinstance(value, float) else value


def _links(path: Path, record: Mapping[str, Any], name: str) -> dict[str, str]:
    """The path, from the working directory, of the input that the next stage needs."""
    recorded = record.get("inputs", {}).get(name)
    return {name: Path(os.path.relpath(resolve_reference(recorded, path))).as_posix()} if recorded else {}
