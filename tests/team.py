"""A run as several processes, as copies of this one: torch is imported only once."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from diffusion_cli.errors import DcliError


def team(size: int, work: Callable[[], object], **env: str) -> list[int]:
    """Do `work` in every rank of a world; their exit codes."""
    with tempfile.TemporaryDirectory() as folder:
        pids = [_rank(rank, size, Path(folder), work, env) for rank in range(size)]
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def _rank(
    rank: int, size: int, folder: Path, work: Callable[[], object], env: dict[str, str]
) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.environ.update(env, RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank))
    os.environ["DCLI_STORE"] = str(folder / "store")
    code = 1
    try:
        work()
        code = 0
    except DcliError as error:
        print(f"rank {rank}: {error.render()}", file=sys.stderr)
        code = error.exit_code
    finally:
        sys.stderr.flush()
        os._exit(code)
