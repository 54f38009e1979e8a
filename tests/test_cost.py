"""What a step costs beside the network, counted in operations: no clock, no noise.

Every operation that reaches torch's dispatcher is counted, and the network's own are
taken off. A ceiling is what was counted when it was written: lower it with the count,
and raise it only for something that is worth it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from tiny import Setup, tiny
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion_cli import assemble
from diffusion_cli.rng import Rng


class Operations(TorchDispatchMode):
    """Counts what is dispatched inside it, and how often a number goes to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.read: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = func.name()
        if name == "aten::_local_scalar_dense":
            self.read[args[0].dtype] += 1
        elif not name.startswith("profiler::"):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def network(depth: int) -> dict[str, Any]:
    return {"name": "mlp", "width": 16, "depth": depth, "dropout": 0.0}


def bare(depth: int) -> int:
    """Operations of the network there and back, once."""
    setup = Setup(parts={"network": network(depth)})
    setup.state.model.train()
    net, x = setup.state.model.network, torch.zeros(8, 2)
    with Operations() as seen:
        net(x, torch.zeros(8)).sum().backward()
    return seen.counts.total()


def step(depth: int = 1, wait: bool = True, **trainer: Any) -> Operations:
    """A training step in the middle of a run, its data gathered before."""
    trainer = {"ema": [4.0], **trainer}
    setup = Setup(parts={"network": network(depth)}, **trainer)
    if not wait:  # as on a GPU between two logs
        setup.trainer.check = lambda state: 0  # type: ignore[method-assign]
    data = [list(batch) for batch in setup.batches(4)]
    run = setup.trainer.run(setup.state, data)
    next(run), next(run)
    with Operations() as seen:
        next(run)
    return seen


def test_the_overhead_does_not_grow_with_the_network() -> None:
    small, large = (step(depth).counts.total() - bare(depth) for depth in (1, 8))
    assert large == small <= 232


def test_nothing_waits_for_the_device() -> None:
    assert step(wait=False).read.total() == 0
    assert step().read.total() == 1  # the CPU looks at once whether a step was finite


def test_one_pass_over_all_weights_each() -> None:
    seen = step(8).counts
    assert seen["aten::_fused_adamw_"] == 2  # weights with and without decay
    assert seen["aten::_foreach_lerp_.Scalar"] == 1
    assert seen["aten::_foreach_norm.Scalar"] == 1
    assert step(8, ema_ramp=0.1).counts.total() == seen.total()


def test_another_average_is_one_operation() -> None:
    one, two = step(ema=[4.0]).counts, step(ema=[4.0, 8.0]).counts
    assert two.total() == one.total() + 1


def test_a_micro_batch_costs_a_forward_pass_and_no_update() -> None:
    one, four = step(micro_batch=8).counts, step(micro_batch=2).counts
    update = [name for name in one if "foreach" in name or "fused" in name]
    assert update and [four[n] for n in update] == [one[n] for n in update]
    assert four.total() - one.total() <= 3 * 250


# operations per step beside the network, and network calls in 8 steps
SAMPLERS = {
    "euler": (39, 8),
    "eab": (44, 8),
    "heun": (49, 15),
    "dpmpp": (39, 8),
    "ancestral": (72, 8),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_step_of_a_sampler(name: str) -> None:
    values = tiny()
    data = assemble.dataset(values)
    parts = assemble.parts(values, data.spec)
    model = parts.model.eval()
    calls, inside = [0], Operations()
    real = model.network.forward

    def forward(*args: Any, **more: Any) -> Any:
        calls[0] += 1
        with inside:
            return real(*args, **more)

    model.network.forward = forward  # type: ignore[method-assign]
    node = {"name": name, "steps": 8, "grid": {"name": "uniform"}}
    sampler = assemble.sampler(node, model.process)
    rng = Rng(0, torch.arange(4), 0)
    x = model.process.prior((4, 2), rng)
    walk = sampler.trajectory(model, x, rng)
    with torch.no_grad(), Operations() as seen:
        for _ in walk:
            pass
    ceiling, wanted = SAMPLERS[name]
    assert calls[0] == wanted
    assert (seen.counts.total() - inside.counts.total()) / 8 <= ceiling
    assert seen.read[torch.float32] == 0  # a state; times are the host's own, float64
