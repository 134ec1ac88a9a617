"""The language of reward programs: which names may be called, which may be read. What is not listed is refused."""

from stages.rewards.interface import GoalState, JointState, KeyPose, ObjectState, RewardInfo, RewardState


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


RECORD_FIELDS: frozenset[str] = frozenset(
    name for record in (ObjectState, JointState, GoalState, KeyPose, RewardState, RewardInfo) for name in record._fields
)
ARRAY_FIELDS = frozenset({"T", "dtype", "ndim", "shape", "size"})
FIELDS = RECORD_FIELDS | ARRAY_FIELDS

_ARRAY_METHODS = """all any argmax argmin astype clip copy cumsum dot flatten item max mean min prod ravel reshape round
    squeeze std sum tolist transpose var"""
_CONTAINER_METHODS = "append count extend get index items keys values"
_TEXT_METHODS = "endswith find join lower removeprefix removesuffix replace split startswith strip upper"
METHODS = _words(f"{_ARRAY_METHODS} {_CONTAINER_METHODS} {_TEXT_METHODS}")
MUTATING_METHODS = frozenset({"append", "extend"})

# Consume what they are given; generators and lazy iterators may stand in them and nowhere else but in loops, so that
# none can be kept, half-used, from one moment to the next.
CONSUMERS = frozenset({"all", "any", "dict", "list", "max", "min", "sorted", "sum", "tuple"})
LAZY = frozenset({"enumerate", "reversed", "zip"})
TYPES = frozenset({"bool", "dict", "float", "int", "list", "tuple"})  # may be named without a call: `astype(float)`
BUILTINS = CONSUMERS | LAZY | TYPES | {"abs", "divmod", "isinstance", "len", "next", "range", "round"}
BUILTIN_KEYWORDS = frozenset({"default", "key", "reverse", "start", "strict", "ndigits"})

CATCHABLE = frozenset(
    {"ArithmeticError", "AssertionError", "AttributeError", "IndexError", "KeyError", "LookupError", "TypeError"}
    | {"OverflowError", "ValueError", "ZeroDivisionError"}
)

MATH_VALUES = frozenset({"e", "inf", "nan", "pi", "tau"})
MATH_FUNCTIONS = _words(
    """acos acosh asin asinh atan atan2 atanh cbrt ceil copysign cos cosh degrees dist erf erfc exp exp2 expm1 fabs floor
    fmod fsum gcd hypot isclose isfinite isinf isnan log log10 log1p log2 modf pow prod radians remainder sin sinh sqrt tan
    tanh trunc"""
)

NUMPY_TYPES = _words("bool bool_ float32 float64 int16 int32 int64 int8")
NUMPY_VALUES = NUMPY_TYPES | {"e", "euler_gamma", "inf", "nan", "ndarray", "newaxis", "pi"}
NUMPY_FUNCTIONS = (
    NUMPY_TYPES
    | _words(
        """abs absolute add all allclose amax amin any arange arccos arccosh arcsin arcsinh arctan arctan2 arctanh argmax argmin
    argsort array array_equal asarray atleast_1d atleast_2d average broadcast_arrays broadcast_to cbrt ceil clip
    column_stack concatenate copysign cos cosh count_nonzero cross cumprod cumsum deg2rad degrees diff digitize divide dot
    einsum equal exp exp2 expand_dims expm1 eye fabs flatnonzero floor floor_divide fmax fmin fmod full full_like greater
    greater_equal heaviside hstack hypot identity inner interp isclose isfinite isin isinf isnan less less_equal linspace
    log log10 log1p log2 logaddexp logical_and logical_not logical_or logical_xor matmul max maximum mean median min minimum
    mod moveaxis multiply nan_to_num nanmax nanmean nanmin nansum negative nonzero not_equal ones ones_like outer percentile
    positive power prod ptp quantile rad2deg radians ravel reciprocal remainder repeat reshape rint roll round searchsorted
    select sign sin sinc sinh sort sqrt square squeeze stack std subtract sum swapaxes take take_along_axis tan tanh tile
    transpose tril triu true_divide trunc unique var vstack where zeros zeros_like"""
    )
    | {f"linalg.{name}" for name in ("det", "inv", "norm", "cross", "vecdot", "vector_norm")}
)
NUMPY_KEYWORDS = _words(
    """a a_max a_min array arr atol axes axis axis1 axis2 choicelist condlist copy ddof decimals default dtype endpoint
    equal_nan fill_value initial keepdims left max min nan neginf num obj ord posinf q repeats reps right rtol shape
    start step stop weights x1 x2 xp fp"""
)
"""No `out`, no `where`: one writes elsewhere, the other leaves memory uninitialised."""

NUMPY_WORDS = _words(
    "bool fro ij left right linear float float32 float64 int int16 int32 int64 int8 nearest lower higher midpoint"
)
"""Strings that numpy functions may be given; a type such as "U9" would print objects, with their addresses."""

MODULES = {"numpy": (NUMPY_FUNCTIONS, NUMPY_VALUES), "math": (MATH_FUNCTIONS, MATH_VALUES)}

REMEDIES = {
    "getattr": "write the attribute out: state.ee_pos",
    "hasattr": "write the attribute out: every state has all fields of the interface",
    "setattr": "nothing can be changed; compute from `state` alone",
    "print": "leave it out; a program has no output but what it returns",
    "open": "leave it out; a program reads `state` and `info` alone",
    "input": "leave it out; a program reads `state` and `info` alone",
    "map": "write a comprehension",
    "filter": "write a comprehension",
    "pow": "write x ** 2 or math.pow(x, y)",
    "set": "use a tuple; the order of a set changes from run to run",
    "frozenset": "use a tuple; the order of a set changes from run to run",
    "str": "leave texts as they are; nothing a reward computes needs one",
    "format": "leave texts as they are; nothing a reward computes needs one",
    "repr": "leave texts as they are; nothing a reward computes needs one",
    "iter": "write a for loop",
    "hash": "leave it out; its value changes from run to run",
    "id": "leave it out; its value changes from run to run",
    "random": "leave it out; a reward is a pure function of the moment",
    "empty": "use np.zeros; np.empty returns what was in memory before",
    "empty_like": "use np.zeros_like; np.empty_like returns what was in memory before",
}
"""For names that programs often try."""

MAX_SOURCE = 100_000  # characters
MAX_DEPTH = 120  # nesting of the syntax tree; an `elif` is one deeper than its `if`
MAX_INTEGER = 10**9
MAX_EXPONENT = 16
MAX_RANGE = 1000
MAX_REPEAT = 1000  # of a list or a text by `*`
MAX_CALLS = 100  # functions that call each other in a row
MAX_LOOPS = 3  # one in another, comprehensions too
MAX_MILESTONES = 128
MAX_LABEL = 60  # characters of a milestone's name
MAX_NAME = 80  # characters of any name
MAX_LITERAL = 10**40  # beyond it Python takes long to write an integer; MAX_INTEGER judges the rest
