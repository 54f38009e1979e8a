"""Names to classes. A config node is a constructor call: signatures are the schema.

A node is `{name: heun, churn: 40}`: `name` picks the class, the other keys are its
keyword arguments. A parameter annotated with another role (`schedule: Schedule`) takes
a nested node. Run-time values (`state=`, `out=`) are *given*: no config may set them.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import reprlib
import types
from collections.abc import Callable, Iterable, Mapping
from functools import cache, lru_cache
from importlib.metadata import entry_points
from sys import float_info
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin
from typing import get_type_hints as type_hints

from diffusion_cli.errors import ConfigError, UnknownName
from diffusion_cli.paths import assignment

T = TypeVar("T")
Node = Mapping[str, Any]

_brief = reprlib.Repr()  # of values that a message shows
_brief.maxstring = _brief.maxother = 80

LARGEST = 2**63  # of an integer: more is for no tensor's size
ROLES: dict[str, Registry[Any]] = {}  # by role, in the order of their definition
_CONTRACTS: dict[type, Registry[Any]] = {}


def near(word: str, words: Iterable[str]) -> str:
    """`; did you mean ...?` with the closest of `words`, or nothing."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"; did you mean `{close[0]}`?" if close else ""


class Registry(Generic[T]):
    """The classes of one role, found by importing the modules of its folder.

    Args:
        role: Singular name, as in the config: `sampler`.
        contract: The abstract class that every member extends.
        package: Folder whose modules register members: `diffusion_cli.samplers`.
        given: Constructor parameters that only the program sets.
    """

    def __init__(
        self, role: str, contract: type[T], package: str, given: tuple[str, ...] = ()
    ) -> None:
        self.role, self.contract, self.package = role, contract, package
        self.given = given
        self._classes: dict[str, type[T]] = {}
        self._loaded = False
        ROLES[role] = self
        _CONTRACTS[contract] = self

    def __call__(self, name: str) -> Callable[[type[T]], type[T]]:
        """Register a class: `@samplers("heun")`."""

        def register(cls: type[T]) -> type[T]:
            taken = self._classes.get(name)
            if taken and taken.__qualname__ != cls.__qualname__:
                raise ConfigError(
                    f"{self.role}: the name `{name}` is already taken by "
                    f"{taken.__module__}.{taken.__qualname__}",
                    "choose another name",
                )
            self._classes[name] = cls
            return cls

        return register

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._load()
        return sorted(self._classes)

    def __getitem__(self, name: str) -> type[T]:
        """The class behind a name; an unknown name is a `ConfigError`."""
        self._load()
        if name not in self._classes:
            raise UnknownName(
                f"{self.role}: there is no `{name}`{near(name, self._classes)}",
                f"dcli list {self.role}",
            )
        return self._classes[name]

    def name_of(self, component: object) -> str:
        """The registered name of an instance or a class."""
        cls = component if isinstance(component, type) else type(component)
        return next((n for n, c in self._classes.items() if c is cls), cls.__name__)

    def check(self, node: Any, where: str) -> tuple[dict[str, Any], list[ConfigError]]:
        """The node with every default filled in, and all that is wrong with it."""
        if not isinstance(node, Mapping) or not isinstance(node.get("name"), str):
            got = _brief.repr(node)
            message = f"{where}: expected a component such as {{name: ...}}, got {got}"
            return {}, [ConfigError(message, f"dcli list {self.role}")]
        try:
            cls = self[node["name"]]
        except ConfigError as error:
            error.message = error.message.replace(f"{self.role}:", f"{where}:", 1)
            return dict(node), [error]
        own = {key: value for key, value in node.items() if key != "name"}
        values, errors = check_call(cls, own, where, node["name"], self.given)
        return {"name": node["name"], **values}, errors

    def build(self, node: Node, **given: Any) -> T:
        """Build a checked node; nested nodes first. A bad range is a `ConfigError`.

        Given values reach every constructor that names them, nested ones too.
        """
        cls: Callable[..., T] = self[node["name"]]
        types: dict[str, Any] = hints(cls)
        own = {key: value for key, value in node.items() if key != "name"}
        values = {key: _construct(own[key], types.get(key), given) for key in own}
        wanted = inspect.signature(cls).parameters
        passed = {key: value for key, value in given.items() if key in wanted}
        try:
            return cls(**values, **passed)
        except ValueError as error:
            raise ConfigError(f"{self.role}.{error}") from error

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__, self.package + "."):
            importlib.import_module(module.name)
        plugins()


@lru_cache(maxsize=1)
def plugins() -> dict[str, types.ModuleType]:
    """Import the installed plug-ins: entry points of the group `dcli.plugins`."""
    return {point.name: point.load() for point in entry_points(group="dcli.plugins")}


@cache
def hints(call: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a constructor, resolved."""
    function = call.__init__ if isinstance(call, type) else call  # type: ignore[misc]
    return type_hints(function)


def check_call(
    call: Callable[..., Any],
    values: Node,
    where: str,
    what: str,
    given: tuple[str, ...],
) -> tuple[dict[str, Any], list[ConfigError]]:
    """Bind `values` to a signature: defaults filled in, and all that is wrong."""
    bound: dict[str, Any] = {}
    errors: list[ConfigError] = []
    signature = inspect.signature(call).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.values())
    parameters = {
        name: parameter
        for name, parameter in signature.items()
        if name not in given and parameter.kind is not parameter.VAR_KEYWORD
    }
    for key in values:
        if key not in parameters and open_ended:
            bound[key] = values[key]  # for another part, which checks it
        elif key not in parameters:
            takes = ", ".join(f"`{name}`" for name in parameters) or "nothing"
            hint = f"`{what}` takes {takes}"
            suggestion = near(key, parameters)
            errors.append(
                ConfigError(f"{where}: `{what}` takes no `{key}`{suggestion}", hint)
            )
    for name, parameter in parameters.items():
        missing = parameter.default is parameter.empty
        if name not in values:
            if missing:
                message = f"{where}.{name}: `{what}` needs a value"
                errors.append(ConfigError(message, f"{where}.{name}=..."))
            else:
                bound[name] = parameter.default
                continue
        else:
            annotation = hints(call).get(name, Any)
            bound[name], found = _fit(values[name], annotation, f"{where}.{name}")
            errors += found
    return bound, errors


def _role(annotation: Any) -> Registry[Any] | None:
    """The role an annotation stands for: `Schedule`, `Grid | None`."""
    options = get_args(annotation) or (annotation,)
    return next(
        (_CONTRACTS[option] for option in options if option in _CONTRACTS), None
    )


def _construct(value: Any, annotation: Any, given: Mapping[str, Any]) -> Any:
    role = _role(annotation)
    if role and isinstance(value, Mapping):
        return role.build(value, **given)
    return tuple(value) if isinstance(value, list) else value


def _fit(value: Any, annotation: Any, where: str) -> tuple[Any, list[ConfigError]]:
    role = _role(annotation)
    if role and isinstance(value, str):
        value = {"name": value}  # a word alone: that component with its defaults
    if role and isinstance(value, Mapping):
        return role.check(value, where)
    try:
        return convert(value, annotation), []
    except TypeError:
        expected = _describe(annotation)
        got = _brief.repr(value)
        word = type(value) in (int, float) and "a word" in expected
        hint = assignment(where.lstrip("."), str(value)) if word else ""
        return value, [ConfigError(f"{where}: expected {expected}, got {got}", hint)]


def convert(value: Any, annotation: Any) -> Any:
    """`value` as its annotation says (1e3 is an integer), or `TypeError`."""
    origin, options = get_origin(annotation), get_args(annotation)
    if annotation is Any or annotation is inspect.Parameter.empty:
        return value
    if origin is Literal:
        if value in options and type(value) in {type(option) for option in options}:
            return value
    elif origin in (Union, types.UnionType):
        for option in options:
            try:
                return convert(value, option)
            except TypeError:
                continue
    elif annotation is type(None):
        if value is None:
            return None
    elif annotation is bool or isinstance(value, bool):
        if isinstance(value, bool) and annotation is bool:
            return value
    elif annotation is int:
        whole = isinstance(value, int) or (
            isinstance(value, float) and value.is_integer()
        )
        if whole and abs(value) <= LARGEST:
            return int(value)
    elif annotation is float:
        if isinstance(value, int | float) and abs(value) <= float_info.max:
            return float(value)
    elif annotation is str:
        if isinstance(value, str):
            return value
    elif origin in (tuple, list):
        if isinstance(value, list | tuple):
            fixed = len(options) if options and options[-1] is not Ellipsis else None
            if origin is list or fixed is None or fixed == len(value):
                kinds = (
                    options if fixed and origin is tuple else options[:1] * len(value)
                )
                return [
                    convert(item, kind) for item, kind in zip(value, kinds, strict=True)
                ]
    elif origin in (dict, Mapping) or getattr(origin, "__name__", "") == "Mapping":
        if isinstance(value, Mapping):
            return dict(value)
    elif isinstance(annotation, type) and isinstance(value, annotation):
        return value
    raise TypeError(annotation)


def _describe(annotation: Any) -> str:
    origin, options = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(f"`{option}`" for option in options)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(option) for option in options)
    if origin in (tuple, list):
        return "a list such as [1, 2]"
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a word"}
    if annotation is type(None):
        return "null"
    return words.get(annotation, getattr(annotation, "__name__", str(annotation)))
