"""Tables of token processes, small enough to enumerate."""

import torch
from oracles import number
from token_oracles import (
    PROCESSES,
    everything,
    symbols,
)

from diffusion_cli.processes.tokens import (
    Factorised,
)

EVERY = sorted(PROCESSES)
COUNTED = ["mask_count", "edit"]
STEPS = {name: (0.7, 0.3) for name in ("mask", "uniform")}
STEPS |= {"d3pm": (0.7, 0.3), "mask_count": (2 / 3, 1 / 3), "edit": (2 / 3, 1 / 3)}


def transition(process, q, x, t, s):
    """p(x_s | x_t) for whole sequences: (N, states), by enumeration."""
    states = everything(symbols(process), process.length)
    if isinstance(process, Factorised):
        law = process.step(q, x, number(t), number(s))  # (N, L, symbols)
        picked = law[:, torch.arange(process.length), states]  # (N, states, L)
        return picked.prod(-1)
    law = process.jump(q, x)  # (N, L, V): one position changes
    total = torch.zeros(len(x), len(states), dtype=torch.float64)
    for i in range(process.length):
        for v in range(process.vocab):
            after = x.clone()
            after[:, i] = v
            place = (states[None] == after[:, None]).all(-1).double().argmax(1)
            total[torch.arange(len(x)), place] += law[:, i, v]
    return total


def data_and_states(process):
    data = everything(process.vocab, process.length)
    return data, everything(symbols(process), process.length)


def radix(process):
    size, length = symbols(process), process.length
    return torch.tensor([size**i for i in reversed(range(length))])


SAMPLERS = {
    "ancestral": {"steps": 40, "grid": {"name": "uniform"}},
    "cached": {"steps": 40, "grid": {"name": "uniform"}},
    "first_hitting": {},
    "confident": {"steps": 3, "temperature": 4.5},
}
