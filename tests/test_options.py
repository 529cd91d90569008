"""Options: types, limits and names are checked in one place, with one line each."""

import dataclasses

import numpy as np
import pytest

from vdt_jax.errors import UserError
from vdt_jax.options import build, option, validate


@dataclasses.dataclass(frozen=True)
class Example:
    """Options of every kind."""

    steps: int = option(50, "Network calls.", minimum=1, maximum=100)
    eta: float | None = option(None, "Noise.", minimum=0)
    sampler: str = option("ddpm", "Sampler.", choices=("ddpm", "ddim"))
    labels: tuple[int, ...] | None = option(None, "Classes.", minimum=0)
    tasks: tuple[str, ...] = option(("a",), "Tasks.", choices=("a", "b"))
    paste: bool = option(True, "Paste.")

    def __post_init__(self):
        validate(self)


def test_values_take_the_type_of_their_field():
    options = build(Example, {"steps": np.int64(3), "eta": 1, "labels": [1, 2], "tasks": ["a", "b"]})
    assert (options.steps, options.eta, options.labels, options.tasks) == (3, 1.0, (1, 2), ("a", "b"))
    assert type(options.steps) is int and type(options.eta) is float


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"steps": 101}, "steps must be <= 100, got 101"),
        ({"steps": 1.5}, "steps must be an integer, got 1.5"),
        ({"steps": True}, "steps must be an integer, got True"),
        ({"steps": None}, "steps must be an integer, got None"),
        ({"eta": float("nan")}, "eta must be a finite number, got nan"),
        ({"eta": float("inf")}, "eta must be a finite number, got inf"),
        ({"eta": "1"}, "eta must be a number, got '1'"),
        ({"sampler": "unipc"}, "sampler must be one of ddpm, ddim, got 'unipc'"),
        ({"labels": 3}, "labels must be a list, got 3"),
        ({"labels": "12"}, "labels must be a list, got '12'"),
        ({"labels": [1, -1]}, "labels must be >= 0, got -1"),
        ({"tasks": ["c"]}, "tasks must be one of a, b, got 'c'"),
        ({"paste": 1}, "paste must be true or false, got 1"),
        ({"step": 1}, "unknown option 'step': did you mean 'steps'?"),
        ({"x": 1}, "unknown option 'x': the options are steps, eta, sampler, labels, tasks, paste"),
    ],
)
def test_what_does_not_fit_gets_one_line(values, message):
    with pytest.raises(UserError) as error:
        build(Example, values)
    assert str(error.value) == message
