"""Faults on purpose, for the tests of what must hold after a crash.

`DCLI_FAULT=name[@n]:action[,...]`, for example `step.loss@7:nan`, `ckpt.rename:kill`,
`ckpt.write:model.safetensors@1024:enospc`. `n` is a step, a byte of a file, or the n-th
time the point is reached. Actions: kill, raise:Type, enospc, eio, nan, sleep:seconds,
exit:code. A command arms them; otherwise nothing is armed and a point is one look-up.
"""

from __future__ import annotations

import builtins
import errno
import os
import re
import signal
import time
from dataclasses import dataclass

from diffusion_cli.errors import ConfigError

_GRAMMAR = re.compile(
    r"(?P<name>[a-z]+\.[a-z]+(?::[\w.-]+)?)(?:@(?P<n>\d+))?:"
    r"(?P<action>kill|raise|enospc|eio|nan|sleep|exit)(?::(?P<value>[\w.]+))?"
)


@dataclass
class Fault:
    """One armed fault: act when the point `name` is reached at `n`."""

    name: str
    n: int | None
    action: str
    value: str
    seen: int = 0


_armed: dict[str, Fault] = {}


def arm(text: str | None) -> None:
    """Replace all armed faults by those of `text`."""
    _armed.clear()
    for part in filter(None, (text or "").split(",")):
        match = _GRAMMAR.fullmatch(part)
        if match is None:
            raise ConfigError(f"DCLI_FAULT: cannot read {part!r}", "name[@n]:action")
        n = int(match["n"]) if match["n"] else None
        fault = Fault(match["name"], n, match["action"], match["value"] or "")
        _armed[fault.name] = fault


def hit(name: str, at: int | None = None) -> bool:
    """Act if a fault is armed here; whether a value is to be replaced by a NaN.

    Args:
        name: Name of the point.
        at: Where the program is (a step); None counts how often the point was reached.
    """
    fault = _armed.get(name)
    if fault is None:
        return False
    fault.seen += 1
    here = fault.seen if at is None else at
    return fault.n in (None, here) and _act(fault)


def offset(name: str) -> int | None:
    """The byte before which a fault is to strike a file, or None."""
    fault = _armed.get(name)
    return None if fault is None else fault.n or 0


def strike(name: str) -> None:
    """Act, wherever the program is."""
    _act(_armed[name])


def _act(fault: Fault) -> bool:
    if fault.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.action == "raise":
        raise getattr(builtins, fault.value or "RuntimeError")(f"fault at {fault.name}")
    elif fault.action in ("enospc", "eio"):
        number = errno.ENOSPC if fault.action == "enospc" else errno.EIO
        raise OSError(number, os.strerror(number), fault.name)
    elif fault.action == "sleep":
        time.sleep(float(fault.value or 1))
    elif fault.action == "exit":
        os._exit(int(fault.value or 1))
    return fault.action == "nan"
