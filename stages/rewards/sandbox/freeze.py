"""Takes from a loaded program all that could change between two calls. Runs in the child."""

from types import FunctionType, MappingProxyType, ModuleType
from typing import Any

import numpy as np

_PLAIN = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    np.number,
    np.bool_,
    np.dtype,
    type,
    ModuleType,
    type(np.sin),
    type(len),
    range,
)


class NotConstant(Exception):
    """A value of the module that cannot be frozen; `name` is the variable."""

    def __init__(self, name: str, value: object) -> None:
        super().__init__(name)
        self.name, self.what = name, type(value).__name__


def freeze_module(namespace: dict[str, Any]) -> None:
    """Lists become tuples, dicts read-only views, arrays read-only; defaults of functions too.

    Raises:
        NotConstant: something else is left, an iterator for instance.
    """
    for name, value in namespace.items():
        if not name.startswith("__"):
            namespace[name] = _frozen(name, value)


def _frozen(name: str, value: Any) -> Any:
    if isinstance(value, FunctionType):
        if value.__defaults__:
            value.__defaults__ = tuple(_frozen(name, default) for default in value.__defaults__)
        if value.__kwdefaults__:
            value.__kwdefaults__ = {key: _frozen(name, default) for key, default in value.__kwdefaults__.items()}
        return value
    if isinstance(value, list | tuple):
        return tuple(_frozen(name, item) for item in value)
    if isinstance(value, dict):
        return MappingProxyType({key: _frozen(name, item) for key, item in value.items()})
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise NotConstant(name, value)
        # Of bytes, so that no view of it can be made writable again.
        return np.frombuffer(value.tobytes(), value.dtype).reshape(value.shape) if value.size else value
    if isinstance(value, _PLAIN) or callable(value):
        return value
    raise NotConstant(name, value)
