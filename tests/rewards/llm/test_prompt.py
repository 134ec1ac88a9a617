import ast
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stages.rewards import interface
from stages.rewards.interface import Context, moment_dtype, moment_shape
from stages.rewards.llm.errors import LlmError
from stages.rewards.llm.libero_source import relevant_source
from stages.rewards.llm.prompt import (
    allowed_text,
    constant_part,
    findings_message,
    interface_text,
    system_prompt,
    task_part,
)
from stages.rewards.llm.reply import program_of
from stages.rewards.sandbox import allowed
from stages.rewards.sandbox.check import check_program
from stages.rewards.states import each
from stages.sim.runtime import libero_root
from stages.sim.tasks import load_task
from tests.rewards.llm.conftest import request_for
from tests.rewards.llm.loopback import GOOD_REPLY


def test_the_interface_in_the_prompt_is_that_of_the_source() -> None:
    text = interface_text()
    for name in ("ObjectState", "JointState", "GoalState", "KeyPose", "RewardState", "RewardInfo"):
        for field in getattr(interface, name)._fields:
            assert re.search(rf"^    {field}: ", text, re.MULTILINE), f"{name}.{field}"
    assert "height of `pos` above `initial_pos`" in text  # units and meanings stand in comments
    assert "class Context" not in text and "MOMENT_FIELDS" not in text
    ast.parse(text)
    assert interface_text() in constant_part()


def test_the_constant_part_comes_first_alone_and_is_marked_for_the_prompt_cache() -> None:
    (block,) = system_prompt()
    assert block["cache_control"] == {"type": "ephemeral"}
    assert not re.search(r"\{(interface|allowed)\}", block["text"])
    assert not re.search(r"milk|libero_object", block["text"])
    assert len(block["text"]) > 9000  # about 2300 tokens: more than the 2048 below which no model of this class caches


@pytest.mark.parametrize(
    "wanted", ["-2 far", "2 approaching", "4 ready to grasp", "8 lifted", "16 placed", "-4 dropped", "50 microseconds"]
)
def test_the_constant_part_holds_the_requirements(wanted: str) -> None:
    assert wanted in constant_part()


def test_the_functions_in_the_prompt_are_those_of_the_sandbox() -> None:
    assert "Functions of numpy that may be called: abs, " in constant_part()
    for name in (*allowed.MATH_FUNCTIONS, *allowed.NUMPY_FUNCTIONS, *allowed.BUILTINS, *allowed.METHODS):
        assert name in allowed_text()


def test_the_task_part_names_everything_a_program_may_use() -> None:
    request = replace(request_for(), initial_pos={"milk_1": (0.1, -0.2, 0.05)})
    text = task_part(request)
    assert "pick up the milk and place it in the basket" in text
    assert "- milk_1, at (0.100, -0.200, 0.050)" in text
    assert "- in milk_1 basket_1_contain_region" in text
    assert "280 steps" in text
    assert "(In milk_1 basket_1_contain_region)" in text  # the BDDL itself
    for name in request.context.object_names:
        assert f"- {name}" in text


def test_joints_have_their_ranges() -> None:
    text = task_part(request_for("libero_goal/0", ("open", "wooden_cabinet_1_middle_region")))
    assert "- wooden_cabinet_1_top_level: from -0.16 to 0.01" in text


@pytest.mark.parametrize(
    ("task", "goals", "there", "absent"),
    [
        (
            "libero_object/7",
            [("in", "milk_1", "basket_1_contain_region")],
            ["class Libero_Floor_Manipulation", "class In(", "class SiteObjectState", "def in_box"],
            ["class On(", "class ObjectState", "def is_open", "def _load_objects_in_arena"],
        ),
        (
            "libero_goal/0",
            [("open", "wooden_cabinet_1_middle_region")],
            ["class Open(", "class WoodenCabinet", "default_open_ranges", "def is_open"],
            ["class In(", "def is_close", "class FlatStove", "def in_box"],
        ),
        (
            "libero_goal/7",
            [("turnon", "flat_stove_1")],
            ["class TurnOn(", "class ObjectState", "class FlatStove", "def turn_on"],
            ["class SiteObjectState", "def turn_off", "class WoodenCabinet"],
        ),
        (
            "libero_goal/8",
            [("on", "akita_black_bowl_1", "plate_1")],
            ["class On(", "def check_ontop", "def check_contact", "< 0.03"],
            ["class SiteObject", "def under", "def check_contain"],
        ),
        (
            "libero_10/9",
            [("in", "white_yellow_mug_1", "microwave_1_heating_region"), ("close", "microwave_1")],
            ["class In(", "class Close(", "class Microwave", "def is_close", "def in_box"],
            ["def is_open", "class On("],
        ),
    ],
)
def test_the_source_is_what_judges_this_goal(
    task: str, goals: list[tuple[str, ...]], there: list[str], absent: list[str]
) -> None:
    source = relevant_source(libero_root(), load_task(task).bddl_file.read_text(), goals)
    for wanted in there:
        assert wanted in source
    for other in absent:
        assert other not in source
    ast.parse(source)


def test_the_source_is_bounded_and_cut_between_classes() -> None:
    request = request_for()
    source = relevant_source(request.libero, request.bddl, request.context.goals, limit=3500)
    assert len(source) <= 3500
    assert "left out" in source and "class In(" in source
    ast.parse(source)


def test_another_libero_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(LlmError, match=r"libero_floor_manipulation\.py.*hf-libero==0\.1\.4"):
        task_part(replace(request_for(), libero=tmp_path))


def test_findings_are_bounded() -> None:
    (block,) = findings_message("x" * 50_000)["content"]
    assert len(block["text"]) < 9000 and "more findings left out" in block["text"]


def moments(context: Context, **values: object) -> dict[str, np.ndarray]:
    """One moment, with zeros where nothing else is said."""
    made = {name: np.zeros((1, *moment_shape(name, context)), moment_dtype(name)) for name in interface.MOMENT_FIELDS}
    for name, value in values.items():
        made[name][0] = value
    return made


@pytest.mark.parametrize("program", ["the example of the prompt", "the reply of the loopback server"])
def test_programs_that_we_show_climb_the_levels_of_the_paper(program: str) -> None:
    example = program == "the example of the prompt"
    text = constant_part().split("# An example")[1] if example else GOOD_REPLY
    source = program_of(text)
    assert source
    check_program(source, program)
    target, goal = ("apple_1", "crate_1") if example else ("milk_1", "basket_1")
    names = (target, goal)
    context = Context("t", names, (), (), (f"{goal}_contain_region",), (("in", target, f"{goal}_contain_region"),), 200)
    module: dict[str, object] = {}
    exec(source, module)  # ours, not an LLM's

    def reward(ee: float, target_x: float, lift: float, peak: float, grasped: bool, success: bool = False) -> float:
        """All on a line towards the goal at x = 1 m."""
        made = moments(
            context,
            ee_pos=(ee, 0, lift),
            object_pos=((target_x, 0, lift), (1, 0, 0)),
            object_peak_lift=(peak, 0),
            object_grasped=(grasped, False),
            place_pos=((1, 0, 0),),
            task_success=success,
        )
        ((state, info),) = each(context, made)
        value, extra = module["compute_reward"](state, info)  # type: ignore[operator]
        assert 0 <= extra["milestone"] < len(module["MILESTONES"])  # type: ignore[arg-type]
        assert math.isfinite(value)
        return float(value)

    levels = [
        reward(ee=-0.5, target_x=0, lift=0, peak=0, grasped=False),
        reward(ee=-0.1, target_x=0, lift=0, peak=0, grasped=False),
        reward(ee=-0.02, target_x=0, lift=0, peak=0, grasped=False),
        reward(ee=0, target_x=0, lift=0.1, peak=0.1, grasped=True),
        reward(ee=0.9, target_x=0.9, lift=0.1, peak=0.1, grasped=True),
        reward(ee=0.95, target_x=0.95, lift=0.1, peak=0.1, grasped=True),
        reward(ee=1, target_x=1, lift=0, peak=0.1, grasped=False, success=True),
    ]
    assert levels == [-2, 2, 4, 8, 10, 12, 16]
    assert reward(ee=0.5, target_x=0.5, lift=0, peak=0.1, grasped=False) == -4
    assert reward(ee=1, target_x=0, lift=0, peak=0, grasped=False) == -2  # hovering over the goal, empty-handed
