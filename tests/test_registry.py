from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import pytest

from diffusion_cli.errors import ConfigError
from diffusion_cli.registry import ROLES, Registry, convert, near
from diffusion_cli.settings import require


class Wheel(ABC):
    @abstractmethod
    def turn(self) -> float: ...


class Car(ABC):
    @abstractmethod
    def drive(self) -> float: ...


@pytest.fixture
def cars(monkeypatch: pytest.MonkeyPatch) -> Registry[Car]:
    """Two roles of the test's own: cars have wheels."""
    monkeypatch.setattr("diffusion_cli.registry.ROLES", {})
    wheels: Registry[Wheel] = Registry("wheel", Wheel, "diffusion_cli.couplings")
    found: Registry[Car] = Registry(
        "car", Car, "diffusion_cli.couplings", given=("road",)
    )

    @wheels("round")
    class Round(Wheel):
        def __init__(self, size: float = 1.0) -> None:
            require(size > 0, "size", size, "> 0")
            self.size = size

        def turn(self) -> float:
            return self.size

    @found("van")
    class Van(Car):
        def __init__(
            self,
            road: str,
            wheel: Wheel,
            doors: int = 2,
            fuel: Literal["gas", "sun"] = "sun",
            trips: tuple[float, ...] = (1.0,),
        ) -> None:
            require(doors >= 1, "doors", doors, ">= 1")
            self.road, self.wheel, self.doors = road, wheel, doors
            self.fuel, self.trips = fuel, trips

        def drive(self) -> float:
            return self.doors * self.wheel.turn()

    return found


def messages(cars: Registry[Car], node: Any) -> list[str]:
    return [error.render() for error in cars.check(node, "car")[1]]


def test_defaults_are_filled_in_and_nested_nodes_are_built(cars: Registry[Car]) -> None:
    node, errors = cars.check({"name": "van", "wheel": {"name": "round"}}, "car")
    assert not errors
    assert node == {
        "name": "van",
        "wheel": {"name": "round", "size": 1.0},
        "doors": 2,
        "fuel": "sun",
        "trips": (1.0,),
    }
    van = cars.build(node | {"doors": 4}, road="A1", speed=3)
    assert (van.drive(), van.road) == (4.0, "A1")  # type: ignore[attr-defined]
    assert cars.name_of(van) == "van"


WHEEL = {"name": "round"}
GOLDEN = [
    (
        None,
        "error: car: expected a component such as {name: ...}, got None\n"
        "hint: dcli list car",
    ),
    (
        {"name": "vna", "wheel": WHEEL},
        "error: car: there is no `vna`; did you mean `van`?\nhint: dcli list car",
    ),
    (
        {"name": "van", "wheel": {"name": "square"}},
        "error: car.wheel: there is no `square`\nhint: dcli list wheel",
    ),
    (
        {"name": "van", "wheel": WHEEL, "dors": 3},
        "error: car: `van` takes no `dors`; did you mean `doors`?\n"
        "hint: `van` takes `wheel`, `doors`, `fuel`, `trips`",
    ),
    (
        {"name": "van", "wheel": WHEEL, "road": "A2"},
        "error: car: `van` takes no `road`\n"
        "hint: `van` takes `wheel`, `doors`, `fuel`, `trips`",
    ),
    (
        {"name": "van"},
        "error: car.wheel: `van` needs a value\nhint: car.wheel=...",
    ),
    (
        {"name": "van", "wheel": WHEEL | {"sise": 2}},
        "error: car.wheel: `round` takes no `sise`; did you mean `size`?\n"
        "hint: `round` takes `size`",
    ),
    (
        {"name": "van", "wheel": WHEEL, "doors": 2.5},
        "error: car.doors: expected an integer, got 2.5",
    ),
    (
        {"name": "van", "wheel": WHEEL, "doors": ""},
        "error: car.doors: expected an integer, got ''",
    ),
    (
        {"name": "van", "wheel": WHEEL, "doors": True},
        "error: car.doors: expected an integer, got True",
    ),
    (
        {"name": "van", "wheel": WHEEL, "fuel": "gaz"},
        "error: car.fuel: expected one of `gas`, `sun`, got 'gaz'",
    ),
    (
        {"name": "van", "wheel": WHEEL, "trips": 3},
        "error: car.trips: expected a list such as [1, 2], got 3",
    ),
]


@pytest.mark.parametrize(("node", "message"), GOLDEN)
def test_messages(node: Any, message: str, cars: Registry[Car]) -> None:
    assert messages(cars, node) == [message]


def test_everything_wrong_is_found_at_once(cars: Registry[Car]) -> None:
    node = {
        "name": "van",
        "wheel": {"name": "round", "size": "x"},
        "dors": 1,
        "fuel": 3,
    }
    assert len(messages(cars, node)) == 3


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"doors": 0}, "car.doors: must be >= 1, got 0"),
        ({"wheel": WHEEL | {"size": -1.0}}, "wheel.size: must be > 0, got -1.0"),
    ],
)
def test_ranges_are_the_constructors(
    node: dict[str, Any], message: str, cars: Registry[Car]
) -> None:
    with pytest.raises(ConfigError) as caught:
        cars.build({"name": "van", "wheel": WHEEL} | node, road="A1")
    assert caught.value.message == message


def test_a_name_is_taken_once(cars: Registry[Car]) -> None:
    with pytest.raises(ConfigError, match="the name `van` is already taken by"):

        @cars("van")
        class Other(Car):
            def drive(self) -> float:
                return 0.0


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1e3, int, 1000),
        (3, float, 3.0),
        ("a", int | str, "a"),
        (None, int | None, None),
        ([1, 2], tuple[float, float], [1.0, 2.0]),
        ([1, "a"], list[int | str], [1, "a"]),
        (True, bool, True),
        ({"eta": 0}, dict[str, Any], {"eta": 0}),
    ],
)
def test_conversions(value: Any, annotation: Any, expected: Any) -> None:
    found = convert(value, annotation)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (1.5, int),
        ("1", int),
        (True, float),
        (1, bool),
        (float("nan"), float),
        ([1], tuple[float, float]),
        ("ab", tuple[str, ...]),
        (1, Literal["1", True]),
        (3, str),
        ([1], dict[str, Any]),
    ],
)
def test_conversions_that_are_refused(value: Any, annotation: Any) -> None:
    with pytest.raises(TypeError):
        convert(value, annotation)


def test_did_you_mean() -> None:
    assert near("huen", ["euler", "heun"]) == "; did you mean `heun`?"
    assert near("xyz", ["euler", "heun"]) == ""


def test_the_roles_are_those_of_the_package() -> None:
    from diffusion_cli.config import COMPONENTS, roles

    assert set(COMPONENTS) <= set(roles()) == set(ROLES)
