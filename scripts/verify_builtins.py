"""Verifies the built-in rewards of tasks and records those that pass, so that nobody has to verify them again.

    python scripts/verify_builtins.py libero_object                         # the suite's ten tasks
    python scripts/verify_builtins.py libero_goal/3 -S sim.assets=libero -S sim.assets_dir=...

Adds to stages/rewards/builtin/verified.json, which `tgrpo rollout` and `tgrpo train` trust: the digest of each program that
passed, with its task and verdict. What failed is printed, with the checks that failed. Run it when the generator changes.
"""

import argparse
import json
from pathlib import Path

from stages.errors import TgrpoError
from stages.gen_reward import built_in
from stages.params import load_params
from stages.sim.tasks import list_tasks, load_task
from stages.store.artifacts import write_json
from stages.trust import SHIPPED
from stages.verify_reward import verify_reward
from stages.workspace import policy_for_probes
from tgrpo_cli.output import reporter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", help="suites or tasks")
    parser.add_argument("--set", "-S", action="append", default=[], help="SECTION.KEY=VALUE")
    given = parser.parse_args()
    known = json.loads(SHIPPED.read_text(encoding="utf-8")) if SHIPPED.exists() else {}
    for name in given.tasks:
        for task in [load_task(name)] if "/" in name else list_tasks(name):
            params = load_params(Path("params.yaml"), [*given.set, f"task={task.id}"])
            try:
                reward = built_in(params)
                report = verify_reward(reward, params, reporter(), checkpoint=policy_for_probes(params))
            except TgrpoError as error:
                print(f"{task.id}: {error}", flush=True)
                continue
            print(f"{task.id}: {report.verdict}", flush=True)
            known = {digest: entry for digest, entry in known.items() if entry["task"] != task.id}
            if report.passed:
                known[reward.digest] = {"task": task.id, "verdict": report.verdict}
            else:
                print(report.findings(), flush=True)
            write_json(SHIPPED, known)


if __name__ == "__main__":
    main()
