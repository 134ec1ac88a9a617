"""LIBERO's own environment class for a task's BDDL file, built without observables, cameras or renderer."""

from pathlib import Path
from typing import Any

from libero.libero.envs import TASK_MAPPING
from libero.libero.envs.bddl_utils import get_problem_info
from robosuite import load_controller_config
from robosuite.utils.errors import RandomizationError

from stages.errors import SimulatorError
from stages.types import ENV_STEPS_PER_SECOND


def make_domain(bddl_file: Path, *, cheap_robot: bool) -> Any:
    """Builds the scene: model, placement samplers, goal predicate and robot. Draws from numpy's global stream.

    Args:
        bddl_file: the task.
        cheap_robot: replace the robot's visual meshes; physics does not change.

    Returns:
        The environment, with two attributes more: `built_body_pos` and `built_body_quat`, the model's body poses before
        any reset moved a fixture.

    Raises:
        SimulatorError: a file of the assets is missing or broken.
    """
    base = TASK_MAPPING[get_problem_info(str(bddl_file))["problem_name"]]

    def initialize_sim(self: Any, xml_string: str | None = None) -> None:
        xml = xml_string or self.model.get_xml()
        if cheap_robot:
            from stages.sim.robot_visuals import cheapen_robot

            xml = cheapen_robot(xml)
        base._initialize_sim(self, xml)
        self.built_body_pos, self.built_body_quat = self.sim.model.body_pos.copy(), self.sim.model.body_quat.copy()

    # LIBERO compares the class's name with the BDDL file's, and robosuite has no way in before the model is compiled.
    domain = type(base.__name__, (base,), {"_initialize_sim": initialize_sim, "_setup_observables": lambda self: {}})
    while True:
        try:
            return domain(
                str(bddl_file),
                robots=["Panda"],
                controller_configs=load_controller_config(default_controller="OSC_POSE"),
                initialization_noise=None,
                use_camera_obs=False,
                has_offscreen_renderer=False,
                control_freq=ENV_STEPS_PER_SECOND,
                ignore_done=True,
                hard_reset=False,
            )
        except RandomizationError:  # no place for the objects in this draw; LIBERO tries on as well
            continue
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise SimulatorError(
                f"the scene of {bddl_file.stem} cannot be built: {type(error).__name__} {' '.join(str(error).split())};"
                " use --set sim.assets=primitive for libero_object, sim.assets=libero for any suite"
            ) from error
