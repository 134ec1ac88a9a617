"""The text of the functions that staged programs are put together from, one kind of sub-goal each."""

PLACING = '''

def placing(state, name, place, grip_height, grip_radius):
    """The stage of an object on its way to a place (3,)."""
    thing = state.objects[name]
    grip = thing.pos + np.array([0.0, 0.0, grip_height])
    to_grip = np.linalg.norm(state.ee_pos - grip, axis=-1) - grip_radius
    to_place = np.linalg.norm((thing.pos - place)[..., :2], axis=-1)
    above = to_place < ABOVE
    lifted = thing.peak_lift > LIFT  # once: a low place lies below where some objects start
    held_loosely = (thing.lift > LIFT) | (above & thing.touched)  # pads lose contact at times
    in_hand = thing.grasped | (held_loosely & (to_grip < NEAR))
    carried = lifted & in_hand
    falling = lifted & (np.linalg.norm(thing.lin_vel, axis=-1) > STILL)  # let go above its place
    return np.select(
        [
            above & (carried | falling),
            carried & (to_place < 2 * ABOVE),
            carried,
            lifted,
            to_grip < NEAR,
            to_grip < APPROACH,
        ],
        [NEARLY, HALFWAY, UNDER_WAY, DROPPED, READY, APPROACHING],
        FAR,
    )
'''
PUSHING = '''

def pushing(state, name, place, grip_height, grip_radius):
    """The stage of an object that is pushed to a place (3,)."""
    thing = state.objects[name]
    grip = thing.pos + np.array([0.0, 0.0, grip_height])
    to_grip = np.linalg.norm(state.ee_pos - grip, axis=-1) - grip_radius
    whole = np.linalg.norm((thing.initial_pos - place)[..., :2], axis=-1)
    left = np.linalg.norm((thing.pos - place)[..., :2], axis=-1)
    return np.select(
        [
            left > whole + ASTRAY,
            left < whole / 4,
            left < whole / 2,
            left < whole * 3 / 4,
            to_grip < NEAR,
            to_grip < APPROACH,
        ],
        [DROPPED, NEARLY, HALFWAY, UNDER_WAY, READY, APPROACHING],
        FAR,
    )
'''
FRACTION = '''

def fraction(state, joint, start, end):
    """How much of the way from start to end a joint has moved."""
    return (state.joints[joint].pos - start) / (end - start)
'''
MOVING = '''

def moving(state, moved, handle):
    """The stage of a joint that has moved some fraction of its way."""
    to_handle = np.linalg.norm(state.ee_pos - state.places[handle], axis=-1)
    return np.select(
        [
            moved > 3 / 4,
            moved > 1 / 2,
            moved > 1 / 4,
            (moved > 1 / 10) | (to_handle < NEAR),
            to_handle < APPROACH,
        ],
        [NEARLY, HALFWAY, UNDER_WAY, READY, APPROACHING],
        FAR,
    )
'''
FARTHEST = '''

def farthest(stages):
    """The stage of the sub-goal that is farthest along; a drop counts unless another one is being moved."""
    best = np.max(stages, axis=0)
    worst = np.min(stages, axis=0)
    return np.where((worst == DROPPED) & (best < UNDER_WAY), DROPPED, best)
'''
OBJECT_HITS = '''

def object_hits(state, progress, name, place):
    """Whether an object is where it is in the key pose that comes next, 0 or 1.

    The demonstration began elsewhere, so its positions count from where the object stood, or, once they are nearer to
    it, from where the object was let go, which is put at this episode's place (3,). Heights count from the start.
    """
    thing = state.objects[name]
    demo = np.array([pose.object_pos[name] for pose in state.key_poses])
    key = demo[progress]
    from_start = np.linalg.norm((key - demo[0])[..., :2], axis=-1)
    from_end = np.linalg.norm((key - demo[-1])[..., :2], axis=-1)
    late = (from_end < from_start)[..., None]
    aside = (thing.pos - key - np.where(late, place - demo[-1], thing.initial_pos - demo[0]))[..., :2]
    lift = thing.lift - (key - demo[0])[..., 2]
    return np.where((np.linalg.norm(aside, axis=-1) < SAME_PLACE) & (np.abs(lift) < SAME_PLACE), 1, 0)


def object_offset(state, progress, name):
    """From an object in the key pose that comes next to the same object now, (3,)."""
    return state.objects[name].pos - np.array([pose.object_pos[name] for pose in state.key_poses])[progress]
'''
HAND_HITS = '''

def hand_hits(state, progress, offset):
    """Whether the hand is as in the key pose that comes next, 0 or 1: position, opening, and where the fingers point.

    The offset (3,) leads from the demonstration to this episode.
    """
    position = np.array([pose.ee_pos for pose in state.key_poses])[progress] + offset
    opening = np.array([pose.gripper_opening for pose in state.key_poses])[progress]
    x, y, z = fingers(np.array([pose.ee_quat for pose in state.key_poses])[progress])
    now_x, now_y, now_z = fingers(state.ee_quat)
    same = np.linalg.norm(state.ee_pos - position, axis=-1) < SAME_PLACE
    same = same & (np.abs(state.gripper_opening - opening) < SAME_OPENING)
    return np.where(same & (x * now_x + y * now_y + z * now_z > SAME_DIRECTION), 1, 0)


def fingers(quat):
    """The direction in which the fingers point, three numbers."""
    x, y, z, w = quat[..., 0], quat[..., 1], quat[..., 2], quat[..., 3]
    return 2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)
'''
