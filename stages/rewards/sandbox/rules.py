"""The grammar of reward programs: an allow-list over the syntax tree. Everything that no method here lets pass is refused.

The rules hold together: functions, methods and modules are never values, so whatever is called can be read off the text;
attributes have listed names; iterators live in the loop or call that uses them up; nothing of the module can be written to.
What remains is arithmetic over `state`, which ends by itself or runs into the limits of the process.
"""

import ast
import difflib
from collections.abc import Callable, Iterable

from stages.rewards.sandbox import allowed
from stages.rewards.sandbox.constants import number
from stages.rewards.sandbox.names import Names, Scope, locals_of
from stages.rewards.sandbox.refusal import Refusal, quoted, refuse

_PLAIN = (
    *(ast.Module, ast.Load, ast.Store, ast.Return, ast.If, ast.IfExp, ast.Pass, ast.Break, ast.Continue, ast.Assert),
    *(ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.UAdd, ast.USub, ast.Not, ast.Invert, ast.Starred),
    *(ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Is, ast.IsNot, ast.In, ast.NotIn),
    *(ast.Tuple, ast.List, ast.Dict, ast.Subscript, ast.Slice, ast.NamedExpr),
)
_OPERATORS = (
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.MatMult),
    *(ast.BitAnd, ast.BitOr, ast.BitXor),
)
_REMEDIES: dict[type[ast.AST], tuple[str, str]] = {
    ast.While: ("a while loop", "loop over something of known length with `for`"),
    ast.Lambda: ("a lambda that is neither named nor a `key=`", "write a `def`"),
    ast.GeneratorExp: ("a generator that is kept", "use it at once, as in any(...) or sum(...), or write a list"),
    ast.Set: ("a set", "use a tuple; the order of a set changes from run to run"),
    ast.SetComp: ("a set", "use a tuple; the order of a set changes from run to run"),
    ast.JoinedStr: ("an f-string", "leave texts as they are; nothing a reward computes needs one"),
    ast.Global: ("`global`", "a reward may not remember anything; compute from `state` alone"),
    ast.Nonlocal: ("`nonlocal`", "a reward may not remember anything; compute from `state` alone"),
    ast.ClassDef: ("a class", "use functions, tuples and dicts"),
    ast.Delete: ("`del`", "leave it out"),
    ast.With: ("a with block", "leave it out"),
    ast.Match: ("a match statement", "write if and elif"),
    ast.Yield: ("`yield`", "return a tuple"),
    ast.YieldFrom: ("`yield`", "return a tuple"),
    ast.LShift: ("a shift of bits", "multiply or divide"),
    ast.RShift: ("a shift of bits", "multiply or divide"),
}
_TOP = (ast.Import, ast.ImportFrom, ast.Assign, ast.FunctionDef, ast.Pass)


_LONGEST_GUESS = 40  # characters of a name for which a similar one is looked for; it takes time with their cube


class Rules(ast.NodeVisitor):
    """Visits a program whose hints are removed; raises `Refusal` at the first thing that is not allowed."""

    def __init__(self, names: Names, labels: ast.expr | None = None) -> None:
        """`labels` holds the names of the milestones, which may have a % in them."""
        self._names = names
        self._labels = {id(node) for node in ast.walk(labels)} if labels else set()
        self._scopes: list[set[str]] = []  # names bound by the functions around
        self._loops = 0
        self._gone_through: list[str | None] = []  # variables that the loops around go through

    def generic_visit(self, node: ast.AST) -> None:
        if not isinstance(node, _PLAIN):
            default = (
                f"`{type(node).__name__}`",
                "it is not part of the language of reward programs; see docs/security.md",
            )
            raise refuse(node, *_REMEDIES.get(type(node), default))
        super().generic_visit(node)

    # Statements

    def visit_Module(self, node: ast.Module) -> None:
        for statement in node.body:
            if not isinstance(statement, _TOP) and not _text(statement):
                raise refuse(
                    statement,
                    "a statement outside of the functions that is no constant, function or import",
                    "move it into compute_reward",
                )
        self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        pass  # `names.collect` has judged it

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        pass

    def visit_Expr(self, node: ast.Expr) -> None:
        if not _text(node):
            if not isinstance(node.value, ast.Call):
                raise refuse(node, "an expression whose value is not used", "leave it out")
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._target(target)
        if isinstance(node.value, ast.Lambda):
            self._function(node.value)
        else:
            self.visit(node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._target(node.target)
        left = ast.copy_location(_loaded(node.target), node.target)
        self.visit(ast.copy_location(ast.BinOp(left, node.op, node.value), node))

    def visit_For(self, node: ast.For) -> None:
        self._target(node.target)
        self._loop(node, [node.iter])
        self._gone_through.append(_root(node.iter))
        for statement in node.body:
            self.visit(statement)
        self._gone_through.pop()
        for statement in node.orelse:
            self.visit(statement)
        self._loops -= 1

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.decorator_list:
            raise refuse(node.decorator_list[0], "a decorator", "leave it out")
        self._function(node)

    def visit_Try(self, node: ast.Try) -> None:
        if node.finalbody:
            raise refuse(node.finalbody[0], "a finally block", "leave it out")
        for handler in node.handlers:
            types = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
            for kind in types:
                if not (isinstance(kind, ast.Name) and kind.id in allowed.CATCHABLE):
                    what = quoted(kind) if kind else "everything"
                    raise refuse(handler, f"catches {what}", "name the exception that you expect, such as KeyError")
            if handler.name:
                raise refuse(handler, f"keeps an exception as {handler.name!r}", "leave out `as`")
        for statement in (*node.body, *(s for handler in node.handlers for s in handler.body), *node.orelse):
            self.visit(statement)

    def visit_Raise(self, node: ast.Raise) -> None:
        kind = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        if node.cause or not (isinstance(kind, ast.Name) and kind.id in allowed.CATCHABLE):
            raise refuse(node, "raises something else than an exception of Python", "write raise ValueError(...)")
        for argument in node.exc.args if isinstance(node.exc, ast.Call) else ():
            self.visit(argument)

    # Expressions

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if value is None or value is ... or isinstance(value, bool):
            return
        if isinstance(value, int | float):
            if isinstance(value, int) and value > allowed.MAX_INTEGER:
                raise refuse(node, f"an integer above {allowed.MAX_INTEGER}", "write it as a float: 1e12")
        elif not isinstance(value, str):
            raise refuse(node, f"a constant of type {type(value).__name__}", "use numbers and texts")
        elif "%" in value and id(node) not in self._labels:
            raise refuse(node, "a text with % in it", "leave it out; texts are not formatted here")

    def visit_Name(self, node: ast.Name) -> None:
        name, names = node.id, self._names
        if isinstance(node.ctx, ast.Store):
            return
        if name in names.modules:
            raise refuse(node, f"{name!r} is used as a value", f"use it as in {name}.sqrt(...)")
        if name in names.functions or names.math.get(name) in allowed.MATH_FUNCTIONS or name in allowed.BUILTINS:
            if name not in allowed.TYPES:
                raise refuse(node, f"the function {name!r} is used as a value", f"call it: {name}(...)")
        elif name not in names.values and name not in names.math:
            raise self._unknown(node, name)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if not isinstance(node.ctx, ast.Load):
            raise refuse(node, f"sets the attribute {node.attr!r}", "nothing but local variables can be changed")
        module = self._module(node)
        if module:
            root, path = module
            functions, values = allowed.MODULES[root]
            if path not in values:
                if path in functions:
                    raise refuse(node, f"{quoted(node)} is used as a value", f"call it: {quoted(node)}(...)")
                raise _not_listed(node, path, quoted(node), functions | values, root)
            return
        if node.attr not in allowed.FIELDS:
            if node.attr in allowed.METHODS:
                raise refuse(node, f"the method {node.attr!r} is used as a value", f"call it: .{node.attr}(...)")
            raise _not_listed(node, node.attr, f"the attribute {node.attr!r}", allowed.FIELDS | allowed.METHODS)
        self.visit(node.value)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if not isinstance(node.op, _OPERATORS):
            raise refuse(node, *_REMEDIES.get(type(node.op), (f"`{type(node.op).__name__}`", "use another operator")))
        self.visit(node.left)
        self.visit(node.right)
        if isinstance(node.op, ast.Pow):
            self._power(node)
        elif isinstance(node.op, ast.Mult) and (_sequence(node.left) or _sequence(node.right)):
            times = node.right if _sequence(node.left) else node.left
            count = number(times, self._names.numbers)
            if not _is_len(times) and (count is None or count > allowed.MAX_REPEAT):
                raise refuse(
                    node,
                    f"a list or a text repeated more than {allowed.MAX_REPEAT} times, or without a known limit",
                    "repeat it a constant number of times",
                )
        value = number(node, self._names.numbers)
        if isinstance(value, int) and abs(value) > allowed.MAX_INTEGER:
            raise refuse(node, f"an integer above {allowed.MAX_INTEGER}", "write it as a float: 1e12")

    def visit_Compare(self, node: ast.Compare) -> None:
        self.visit(node.left)
        for operator, other in zip(node.ops, node.comparators, strict=True):
            self.visit(operator)
            # A set whose only use is `in` has no order that shows.
            inside = isinstance(operator, ast.In | ast.NotIn) and isinstance(other, ast.Set)
            for part in other.elts if inside and isinstance(other, ast.Set) else (other,):
                self.visit(part)

    def visit_ListComp(self, node: ast.ListComp) -> None:
        self._comprehension(node, node.generators, [node.elt])

    def visit_DictComp(self, node: ast.DictComp) -> None:
        self._comprehension(node, node.generators, [node.key, node.value])

    # Calls

    def visit_Call(self, node: ast.Call) -> None:
        for keyword in node.keywords:
            if keyword.arg is None:
                raise refuse(node, "`**` in a call", "write the arguments out")
        func = node.func
        if isinstance(func, ast.Name):
            self._call_name(node, func)
        elif isinstance(func, ast.Attribute):
            self._call_attribute(node, func)
        else:
            raise refuse(node, "calls something that is no function of the program", "call functions by their names")

    def _call_name(self, node: ast.Call, func: ast.Name) -> None:
        name, names = func.id, self._names
        if name in names.functions:
            if not self._scopes:
                raise refuse(node, f"calls {name!r} outside of a function", "move the call into compute_reward")
            self._arguments(node)
        elif names.math.get(name) in allowed.MATH_FUNCTIONS:
            self._arguments(node)
        elif name in allowed.BUILTINS:
            self._keywords(node, allowed.BUILTIN_KEYWORDS, name)
            self._call_builtin(node, name)
        elif name in names.values:
            raise refuse(node, f"calls {name!r}, a value", "call functions of the program, of math and of numpy")
        elif name in allowed.CATCHABLE:
            raise refuse(node, f"makes a {name} without raising it", "write `raise` before it")
        else:
            raise self._unknown(node, name)

    def _call_builtin(self, node: ast.Call, name: str) -> None:
        if name in allowed.LAZY:
            hint = f"use {name}(...) in the `for` itself, or wrap it: list({name}(...))"
            raise refuse(node, f"keeps {name}(...) as a value", hint)
        if name == "next":
            if not (node.args and isinstance(node.args[0], ast.GeneratorExp)):
                raise refuse(node, "next(...) of something that is kept", "write next((x for x in ...), None)")
            self._generator(node.args[0])
            for argument in node.args[1:]:
                self.visit(argument)
            return
        if name == "range":
            for argument in node.args:
                limit = number(argument, self._names.numbers)
                if not _is_len(argument) and (limit is None or abs(limit) > allowed.MAX_RANGE):
                    raise refuse(
                        node,
                        f"a range without a known end, or longer than {allowed.MAX_RANGE}",
                        f"use constants up to {allowed.MAX_RANGE}, or range(len(...))",
                    )
        self._arguments(node, lazy=name in allowed.CONSUMERS)

    def _call_attribute(self, node: ast.Call, func: ast.Attribute) -> None:
        module = self._module(func)
        if module:
            root, path = module
            functions, values = allowed.MODULES[root]
            if path not in functions:
                raise _not_listed(func, path, quoted(func), functions | values, root)
            if root == "numpy":
                self._keywords(node, allowed.NUMPY_KEYWORDS, quoted(func))
                self._words(node, quoted(func), everything=path == "einsum")
            self._arguments(node)
            return
        if func.attr not in allowed.METHODS:
            raise _not_listed(func, func.attr, f"the method {func.attr!r}", allowed.METHODS | allowed.FIELDS)
        root_name = _root(func.value)
        if func.attr in allowed.MUTATING_METHODS and root_name is not None:
            self._may_change(func, root_name)
            if root_name in self._gone_through:
                raise refuse(func, f"a loop over {root_name!r} that makes it longer", "append to another list")
        if func.attr in ("astype", "sum", "mean", "cumsum", "prod", "std", "var"):
            self._words(node, f".{func.attr}", everything=False)
        self._keywords(node, allowed.NUMPY_KEYWORDS, f".{func.attr}")
        self._arguments(node, lazy=func.attr in ("join", "extend"))
        self.visit(func.value)

    def _arguments(self, node: ast.Call, lazy: bool = False) -> None:
        for argument in node.args:
            if lazy:
                self._iterable(argument)
            else:
                self.visit(argument)
        for keyword in node.keywords:
            if keyword.arg != "key":
                self.visit(keyword.value)
            elif isinstance(keyword.value, ast.Lambda):
                self._function(keyword.value)
            elif not (
                isinstance(keyword.value, ast.Name) and keyword.value.id in {*self._names.functions, "abs", "len"}
            ):
                raise refuse(keyword.value, "a `key` that is no function of the program", "write key=lambda x: ...")

    def _keywords(self, node: ast.Call, known: Iterable[str], name: str) -> None:
        for keyword in node.keywords:
            if keyword.arg not in {*known}:
                raise refuse(keyword.value, f"the argument {keyword.arg!r} of {name}", "leave it out")

    def _words(self, node: ast.Call, name: str, everything: bool) -> None:
        for value in (*node.args, *(keyword.value for keyword in node.keywords)):
            text = value.value if isinstance(value, ast.Constant) else None
            if isinstance(text, str) and not everything and text not in allowed.NUMPY_WORDS:
                raise refuse(value, f"{text!r} given to {name}", "name a numeric type: float, int, bool")

    # Loops

    def _iterable(self, node: ast.expr) -> None:
        """What a loop or a consumer takes: a generator and lazy iterators too."""
        if isinstance(node, ast.GeneratorExp):
            self._generator(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in allowed.LAZY:
            self._keywords(node, allowed.BUILTIN_KEYWORDS, node.func.id)
            for argument in node.args:
                self._iterable(argument)
            for keyword in node.keywords:
                self.visit(keyword.value)
        else:
            self.visit(node)

    def _generator(self, node: ast.GeneratorExp) -> None:
        self._comprehension(node, node.generators, [node.elt])

    def _comprehension(self, node: ast.expr, generators: list[ast.comprehension], parts: list[ast.expr]) -> None:
        for generator in generators:
            if generator.is_async:
                raise refuse(node, "`async`", "leave it out")
            self._target(generator.target)
            self._loop(node, [generator.iter])
            for condition in generator.ifs:
                self.visit(condition)
        for part in parts:
            self.visit(part)
        self._loops -= len(generators)

    def _loop(self, node: ast.AST, over: list[ast.expr]) -> None:
        for iterable in over:
            self._iterable(iterable)
        self._loops += 1
        if self._loops > allowed.MAX_LOOPS:
            raise refuse(node, f"more than {allowed.MAX_LOOPS} loops in one another", "compute with arrays instead")

    # Names and what they stand for

    def _function(self, scope: Scope) -> None:
        arguments = scope.args
        for default in (*arguments.defaults, *(d for d in arguments.kw_defaults if d)):
            if isinstance(default, ast.List | ast.Dict | ast.ListComp | ast.DictComp | ast.Call):
                raise refuse(default, "a default that would be kept from call to call", "use a constant or a tuple")
            self.visit(default)
        loops, self._loops = self._loops, 0
        self._scopes.append(locals_of(scope))
        for part in [scope.body] if isinstance(scope, ast.Lambda) else scope.body:
            self.visit(part)
        self._scopes.pop()
        self._loops = loops

    def _target(self, target: ast.expr) -> None:
        if isinstance(target, ast.Tuple | ast.List):
            for part in target.elts:
                self._target(part)
        elif isinstance(target, ast.Starred):
            self._target(target.value)
        elif isinstance(target, ast.Subscript):
            root = _root(target)
            if root is None:
                raise refuse(target, f"writes into {quoted(target.value)}", "copy it into a variable of its own first")
            self._may_change(target, root)
            self.visit(_loaded(target))
        elif not isinstance(target, ast.Name):
            self.visit(target)

    def _may_change(self, node: ast.AST, name: str) -> None:
        if not any(name in scope for scope in self._scopes):
            raise refuse(
                node,
                f"changes {name!r} of the module",
                "a reward may not remember anything; make a list or an array inside the function",
            )

    def _module(self, node: ast.Attribute) -> tuple[str, str] | None:
        """`np.linalg.norm` -> ("numpy", "linalg.norm"); None where the attribute is not a module's."""
        parts: list[str] = []
        base: ast.expr = node
        while isinstance(base, ast.Attribute):
            parts.append(base.attr)
            base = base.value
        if not (isinstance(base, ast.Name) and base.id in self._names.modules):
            if isinstance(base, ast.Name) and base.id in ("np", "numpy", "math") and base.id not in self._names.values:
                raise self._unknown(node, base.id)
            return None
        module, path = self._names.modules[base.id], ".".join(reversed(parts))
        if path.rpartition(".")[0] not in ("", "linalg"):
            raise _not_listed(node, node.attr, quoted(node), (), module)
        return module, path

    def _power(self, node: ast.BinOp) -> None:
        exponent, base = (number(side, self._names.numbers) for side in (node.right, node.left))
        if isinstance(base, float) or (exponent is not None and abs(exponent) <= allowed.MAX_EXPONENT):
            return
        raise refuse(
            node,
            f"a power whose exponent is not a constant up to {allowed.MAX_EXPONENT}",
            "write np.exp(...), math.pow(...) or np.power(...)",
        )

    def _unknown(self, node: ast.AST, name: str) -> Refusal:
        known = {
            *self._names.values,
            *self._names.functions,
            *self._names.modules,
            *self._names.math,
            *allowed.BUILTINS,
        }
        if name in ("np", "numpy", "math"):
            return refuse(
                node, f"{name!r} is not imported", f"begin with `import {'numpy as np' if name == 'np' else name}`"
            )
        if name.startswith("__"):
            return refuse(node, f"the name {name!r} begins with an underscore", "leave it out")
        if name in allowed.REMEDIES:
            return refuse(node, f"uses {name!r}", allowed.REMEDIES[name])
        return refuse(node, f"{name!r} is not known here", _nearest(name, known, "define it, or leave it out"))


def _not_listed(node: ast.AST, name: str, found: str, known: Iterable[str], module: str = "") -> Refusal:
    if name.startswith("_"):
        return refuse(
            node, f"the name {name!r} begins with an underscore", "leave it out; nothing hidden can be reached"
        )
    if name in allowed.REMEDIES:
        return refuse(node, f"uses {found}", allowed.REMEDIES[name])
    other = f"use another function of {module}" if module else "see stages/rewards/interface.py for what there is"
    return refuse(node, f"{found} is not part of what a program may use", _nearest(name, known, other))


def _nearest(name: str, known: Iterable[str], otherwise: str) -> str:
    near = difflib.get_close_matches(name, sorted(known), 1, 0.7) if len(name) <= _LONGEST_GUESS else []
    return f"did you mean {near[0]!r}?" if near else otherwise


def _text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _sequence(node: ast.expr) -> bool:
    return isinstance(node, ast.List | ast.Tuple | ast.ListComp) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _is_len(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "len"


def _root(node: ast.expr) -> str | None:
    """The variable that `x[0][1]` stands in."""
    while isinstance(node, ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _loaded(target: ast.expr) -> ast.expr:
    """The target of an assignment as an expression that is read."""
    fields = {name: value for name, value in ast.iter_fields(target) if name != "ctx"}
    make: Callable[..., ast.expr] = type(target)
    return ast.copy_location(make(**fields, ctx=ast.Load()), target)
