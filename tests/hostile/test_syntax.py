"""Attacks that do not get past the check of the syntax."""

import ast

import pytest

from stages.rewards.sandbox import RewardError, RewardProcess, check_program
from stages.rewards.sandbox.refusal import Refusal
from stages.rewards.sandbox.restricted import second_opinion
from tests.hostile.sample import CONTEXT, body, module, moments

ATTACKS = [
    # A way out through Python's own insides
    (
        "dunder chain",
        body("x = ().__class__.__bases__[0].__subclasses__()"),
        5,
        "'__subclasses__' begins with an underscore",
    ),
    ("dunder of a record", body("x = state.__class__"), 5, "'__class__' begins with an underscore"),
    ("dunder of a function", body("x = abs.__self__"), 5, "'__self__' begins with an underscore"),
    ("globals of a function", body("x = np.linalg.norm.__globals__"), 5, "underscore"),
    ("globals of a lambda", body("f = lambda: 0", "x = f.__globals__"), 6, "'__globals__' begins with an underscore"),
    ("dunder name", body("x = __builtins__"), 5, "'__builtins__' begins with an underscore"),
    ("private method of a record", body("x = state._replace(step=1)"), 5, "'_replace' begins with an underscore"),
    ("getattr", body("x = getattr(state, 'ee' + '_pos')"), 5, "uses 'getattr'"),
    ("hidden getattr", body("g = getattr"), 5, "uses 'getattr'"),
    ("vars", body("x = vars(state)"), 5, "'vars' is not known here"),
    ("globals", body("x = globals()"), 5, "'globals' is not known here"),
    ("type", body("x = type('X', (), {})"), 5, "'type' is not known here"),
    ("eval", body("eval('1')"), 5, "'eval' is not known here"),
    ("exec", body("exec('x = 1')"), 5, "'exec' is not known here"),
    ("compile", body("compile('1', 'x', 'eval')"), 5, "'compile' is not known here"),
    ("frame of a generator", body("x = (i for i in (1,)).gi_frame"), 5, "'gi_frame' is not part"),
    (
        "traceback",
        body("try:", "    x = 1", "except KeyError as e:", "    x = e.__traceback__"),
        7,
        "keeps an exception as 'e'",
    ),
    ("class", module("class X: pass"), 3, "outside of the functions"),
    ("class inside", body("class X: pass"), 5, "a class"),
    ("decorator", module("@math.sqrt", "def f(x): return x"), 3, "a decorator"),
    ("metaclass by a decorator", body("@abs", "def f(x): return x"), 5, "a decorator"),
    ("match on a class", body("match state:", "    case object(__class__=c): pass"), 5, "a match statement"),
    ("with", body("with np.errstate(): pass"), 5, "a with block"),
    # Imports
    ("import os", module("import os"), 3, "imports 'os'"),
    ("import submodule", module("import numpy.ctypeslib"), 3, "imports 'numpy.ctypeslib'"),
    ("import under another name", module("import numpy as math2"), 3, "imports 'numpy' as 'math2'"),
    ("import inside", body("import math"), 5, "an import inside other code"),
    ("from numpy", module("from numpy import load"), 3, "imports 'load' from 'numpy'"),
    ("from math star", module("from math import *"), 3, "imports '*' from 'math'"),
    ("from math something else", module("from math import factorial"), 3, "imports 'factorial' from 'math'"),
    ("relative import", module("from . import x"), 3, "imports 'x' from '.'"),
    ("__import__", body("x = __import__('os')"), 5, "'__import__' begins with an underscore"),
    # Files, through Python and through numpy
    ("open", body("x = open('/etc/passwd')"), 5, "uses 'open'"),
    ("np.load", body("x = np.load('/etc/passwd', allow_pickle=True)"), 5, "np.load is not part"),
    ("np.save", body("np.save('x', state.ee_pos)"), 5, "np.save is not part"),
    ("np.fromfile", body("x = np.fromfile('/etc/passwd')"), 5, "np.fromfile is not part"),
    ("np.memmap", body("x = np.memmap('/etc/passwd')"), 5, "np.memmap is not part"),
    ("np.loadtxt", body("x = np.loadtxt('/etc/passwd')"), 5, "np.loadtxt is not part"),
    ("tofile", body("state.ee_pos.tofile('x')"), 5, "'tofile' is not part"),
    ("dump", body("state.ee_pos.dump('x')"), 5, "'dump' is not part"),
    ("pickle", module("import pickle"), 3, "imports 'pickle'"),
    ("pickle of an array", body("x = state.ee_pos.dumps()"), 5, "'dumps' is not part"),
    ("ctypes", body("x = np.ctypeslib"), 5, "np.ctypeslib is not part"),
    ("address of an array", body("x = state.ee_pos.ctypes.data"), 5, "'data' is not part"),
    ("numpy's testing", body("x = np.testing.runstring('1', {})"), 5, "np.testing.runstring"),
    ("numpy's builtins", body("x = np.core.multiarray"), 5, "np.core.multiarray"),
    ("module as a value", body("n = np", "x = n.load('x')"), 5, "'np' is used as a value"),
    ("module in a tuple", body("x = (np, math)[0]"), 5, "'np' is used as a value"),
    ("module rebound", body("np = state"), 5, "binds 'np', which is imported"),
    # Texts
    ("format", body("x = '{0.__class__}'.format(state)"), 5, "'format' is not listed|uses the method 'format'"),
    ("format_map", body("x = '{a.__class__}'.format_map({'a': state})"), 5, "'format_map' is not part"),
    ("f-string", body("x = f'{state}'"), 5, "an f-string"),
    ("nested f-string", body("x = 'a' + f'{state.step:{10**8}}'"), 5, "an f-string"),
    ("percent", body("x = '%999999999s' % 1"), 5, "a text with %"),
    ("percent by a variable", body("a = '%r'", "x = a % state"), 5, "a text with %"),
    ("str", body("x = str(state)"), 5, "uses 'str'"),
    ("type that prints", body("x = state.ee_pos.astype('U99')"), 5, "'U99' given to .astype"),
    ("object array", body("x = np.array([state], dtype=object)"), 5, "'object' is not known here"),
    ("object array by a letter", body("x = np.array([1], 'O')"), 5, "'O' given to np.array"),
    # Without end, or too large
    ("while", body("while True: pass"), 5, "a while loop"),
    ("huge range", body("for i in range(10**9): pass"), 5, "a range without a known end, or longer than 1000"),
    ("range by a name", module("N = 10**8", "def f():", "    return [i for i in range(N)]"), 5, "a range"),
    ("range by state", body("for i in range(state.step): pass"), 5, "a range without a known end"),
    (
        "four loops",
        body("for a in range(9):", "  for b in range(9):", "    for c in range(9):", "      x = [d for d in range(9)]"),
        8,
        "more than 3 loops",
    ),
    ("recursion", module("def f(x):", "    return f(x)"), 4, "'f' calls itself"),
    ("mutual recursion", module("def f(x):", "    return g(x)", "def g(x):", "    return f(x)"), 6, "'f' calls itself"),
    ("recursion of a lambda", body("f = lambda x: f(x)"), 5, "'f' calls itself"),
    ("recursion by an argument", body("f = lambda g: g(g)", "f(f)"), 5, "calls 'g', a value"),
    ("tower of powers", body("x = 10**10**9"), 5, "a power whose exponent"),
    ("power of a variable", body("x = state.step ** state.step"), 5, "a power whose exponent"),
    ("large power", body("x = 9**16"), 5, "an integer above"),
    ("pow", body("x = pow(10, 10**9)"), 5, "uses 'pow'"),
    ("shift", body("x = 1 << 10**9"), 5, "a shift of bits"),
    ("large integer", body("x = 123456789012"), 5, "an integer above"),
    ("list repeated", body("x = [0] * 10**9"), 5, "a list or a text repeated"),
    ("text repeated", body("x = 10**9 * 'a'"), 5, "a list or a text repeated"),
    ("factorial", body("x = math.factorial(10**9)"), 5, "math.factorial is not part"),
    ("deep nesting", body("x = " + "-" * 300 + "1"), 5, "nested more than 120 levels"),
    ("deeper nesting", body("x = " + "(" * 300 + ")" * 300), 5, "no valid Python"),
    ("long sum", body("x = " + "+".join("1" * 500)), 5, "nested more than 120 levels"),
    ("longer sum", body("x = " + "+".join("1" * 20_000)), 5, "nested too deeply"),
    ("long text", "#" * 100_001, 1, "100001 characters long"),
    ("null byte", body("x = '\0'"), 5, "no valid Python"),
    ("half a surrogate pair", body("x = '\ud800'"), 5, "no valid Python"),
    (
        "list that grows in its loop",
        body("a = [1]", "for x in a:", "    a.append(x)"),
        7,
        "a loop over 'a' that makes it longer",
    ),
    # What would keep the parent busy, or break what it prints
    (
        "names to be compared for hours",
        body(f"{'ab' * 20_000}c = 1", f"x = {'ab' * 20_000}d"),
        5,
        "a name of more than 80 characters",
    ),
    (
        "integer that cannot be written",
        "def compute_reward(state, info, x=0x" + "f" * 5000 + "): pass",
        1,
        "too many digits",
    ),
    ("caught integer", body("try:", "    x = 1", "except 0x" + "f" * 5000 + ":", "    x = 2"), 7, "too many digits"),
    ("written integer", body("(1 + 0x" + "f" * 5000 + ")[0] = 1"), 5, "too many digits"),
    ("long text quoted", body(f"x = state.ee_pos.astype('{'a' * 90_000}')"), 5, "aaa"),
    (
        "functions in a long row",
        module(*(f"def f{n}(): return f{n + 1}()" for n in range(300)), "def f300(): return 1"),
        102,
        "more than 100 deep",
    ),
    ("label that is a formula", module("MILESTONES = ('a\\nb',)"), 3, "no short plain text"),
    ("label that clears the terminal", module("MILESTONES = ('\\x1b[2J',)"), 3, "no short plain text"),
    ("label that fills the findings", module(f"MILESTONES = ('{'a' * 90_000}',)"), 3, "no short plain text"),
    (
        "type renamed by an import",
        "from math import sqrt as float\n" + module(),
        1,
        "binds 'float', which Python defines",
    ),
    ("everything is caught", body("try:", "    x = 1", "except:", "    x = 2"), 7, "catches everything"),
    (
        "limits are caught",
        body("try:", "    x = 1", "except (KeyError, MemoryError):", "    x = 2"),
        7,
        "catches MemoryError",
    ),
    ("finally", body("try:", "    x = 1", "finally:", "    x = 2"), 8, "a finally block"),
    # What would make two calls differ
    ("global", body("global count", "count = 1"), 5, "`global`"),
    ("nonlocal", body("c = 0", "def f():", "    nonlocal c"), 7, "`nonlocal`"),
    ("default argument", module("def f(seen=[]):", "    return len(seen)"), 3, "a default that would be kept"),
    ("function attribute", body("compute_reward.count = 1"), 5, "sets the attribute 'count'"),
    ("module's list", module("SEEN = []", "def f():", "    SEEN.append(1)"), 5, "changes 'SEEN' of the module"),
    ("module's dict", module("SEEN = {}", "def f():", "    SEEN['a'] = 1"), 5, "changes 'SEEN' of the module"),
    ("module's array", module("SEEN = np.zeros(1)", "def f():", "    SEEN[0] += 1"), 5, "changes 'SEEN' of the module"),
    (
        "module's closure",
        module("def f():", "    seen = []", "    return lambda: seen"),
        5,
        "a lambda that is neither named",
    ),
    ("closure kept", module("def f():", "    return 1", "KEPT = f()"), 5, "calls 'f' outside of a function"),
    ("generator kept", module("KEPT = (i for i in (1, 2))"), 3, "a generator that is kept"),
    ("iterator kept", module("KEPT = enumerate((1, 2))"), 3, "keeps enumerate(...)"),
    ("next of what is kept", body("x = [1]", "next(x)"), 6, "next(...) of something that is kept"),
    ("yield", body("yield 1"), 5, "an expression whose value is not used|`yield`"),
    ("random numbers", body("x = np.random.rand()"), 5, "np.random.rand"),
    ("address", body("x = id(state)"), 5, "uses 'id'"),
    ("hash of a text", body("x = hash(state.target)"), 5, "uses 'hash'"),
    ("order of a set", body("x = [a for a in {'a', 'b'}]"), 5, "a set"),
    ("order of a set by its constructor", body("x = list(set(('a', 'b')))"), 5, "uses 'set'"),
    ("uninitialised memory", body("x = np.empty(3)"), 5, "np.empty returns what was in memory before"),
    ("uninitialised by a mask", body("x = np.add(1, state.ee_pos, where=False)"), 5, "the argument 'where'"),
    ("address by a function in an array", body("x = np.array([compute_reward])"), 5, "is used as a value|calls itself"),
    (
        "address by a method in an array",
        body("x = np.array([state.objects.get])"),
        5,
        "the method 'get' is used as a value",
    ),
    ("address by an iterator in an array", body("x = np.array([zip()])"), 5, "keeps zip(...)"),
    # Changing what others see
    ("patch numpy", body("np.linalg.norm = abs"), 5, "sets the attribute 'norm'"),
    ("patch the state", body("state.step = 3"), 5, "sets the attribute 'step'"),
    ("write into an array", body("state.ee_pos[0] = 1.0"), 5, "writes into state.ee_pos"),
    ("write into a mapping", body("state.objects['x'] = 1"), 5, "writes into state.objects"),
    ("write through out", body("np.add(1, 2, out=state.ee_pos)"), 5, "the argument 'out'"),
    ("make writable", body("state.ee_pos.setflags(write=True)"), 5, "'setflags' is not part"),
    ("base of an array", body("x = state.ee_pos.base"), 5, "'base' is not part"),
    ("hide a builtin", body("abs = state"), 5, "binds 'abs', which Python defines"),
    ("arguments by a dict", body("np.add(1, 2, **{'out': state.ee_pos})"), 5, "`**` in a call"),
    ("delete", body("del state"), 5, "`del`"),
    ("print", body("print(state)"), 5, "uses 'print'"),
    ("hidden in a hint's name", module("x: int = open('/etc/passwd')"), 3, "uses 'open'"),
    ("hidden in a default", module("def f(x=open('x')): return x"), 3, "a default that would be kept"),
    ("hidden in a key", body("x = sorted((1, 2), key=eval)"), 5, "a `key` that is no function of the program"),
    ("hidden in a comprehension", body("x = [y.__class__ for y in (1,)]"), 5, "'__class__' begins with an underscore"),
    ("hidden in a slice", body("x = state.ee_pos[eval('0'):]"), 5, "'eval' is not known here"),
    ("coroutine", module("async def f(): pass"), 3, "outside of the functions"),
]

# What is no attack, but no reward program either
MISTAKES = [
    ("no function", "x = 1", None, "no function compute_reward"),
    ("empty", "", None, "no function compute_reward"),
    (
        "one parameter",
        "\ndef compute_reward(state):\n    return 1",
        2,
        "compute_reward(state) does not have the two parameters",
    ),
    ("three parameters", "def compute_reward(a, b, c=1):\n    return 1", 1, "compute_reward(a, b, c=1) does not have"),
    ("any parameters", "def compute_reward(*args):\n    return 1", 1, "compute_reward(*args) does not have"),
    ("no Python", "def compute_reward(state, info)\n    return 1", 1, "no valid Python"),
    ("return outside", "def compute_reward(state, info):\n    return 1\nreturn 2", 3, "outside"),
    ("misspelt field", body("x = state.gripper_openning"), 5, "did you mean 'gripper_opening'?"),
    ("misspelt function", body("x = np.linalg.nrm(state.ee_pos)"), 5, "did you mean 'linalg.norm'?"),
    ("unknown name", body("x = tresh"), 5, "'tresh' is not known here"),
    ("forgotten import", "def compute_reward(state, info):\n    return np.abs(1)", 2, "'np' is not imported"),
    ("private helper", module("def _near(x): return x"), 3, "call it 'near'"),
    ("import for hints", module("from typing import Any"), 3, "hints are not evaluated"),
    ("milestones by a name", module("A = 'a'", "MILESTONES = (A,)"), 4, "MILESTONES is no tuple"),
    ("vectorised by a name", module("VECTORISED = 'yes'"), 3, "VECTORISED is neither True nor False"),
    ("defined twice", module("def f(): return 1", "def f(): return 2"), 4, "defines 'f' a second time"),
]


@pytest.mark.parametrize(
    ("source", "line", "words"), [row[1:] for row in ATTACKS + MISTAKES], ids=[row[0] for row in ATTACKS + MISTAKES]
)
def test_refused_with_its_line(source: str, line: int | None, words: str) -> None:
    with pytest.raises(RewardError) as caught:
        check_program(source, "reward.py")
    message = str(caught.value)
    assert caught.value.line == line, message
    assert any(word in message for word in words.split("|")), message
    assert message.startswith("reward.py, line " if line else "reward.py: ")
    assert "\n" not in message and message.count("; ") >= 1 and len(message) < 600


@pytest.mark.parametrize(
    "text",
    ["x = state.__class__", "exec('1')", "x._y = 1", "async def f(): pass", "def f(): nonlocal x", "from os import *"],
)
def test_restricted_python_would_refuse_alone(text: str) -> None:
    with pytest.raises(Refusal) as caught:
        second_opinion(ast.parse(f"y = 1\n{text}"))
    assert caught.value.line == 2 and caught.value.found


def test_warnings_of_a_program_go_nowhere(recwarn: pytest.WarningsRecorder) -> None:
    check_program(body("x = state.step is 1", "y = '\\d'"), "reward.py")
    assert not recwarn.list


@pytest.mark.parametrize("end", ["\r", "\r\n"])
def test_lines_are_counted_whatever_ends_them(end: str) -> None:
    source = body("x = 1", "return 1.0 / 0").replace("\n", end)
    with pytest.raises(RewardError) as caught, RewardProcess(source, "reward.py", CONTEXT) as process:
        process.score(moments(1))
    assert caught.value.line == 6
