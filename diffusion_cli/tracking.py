"""What a run tells: `metrics.jsonl`, TensorBoard, pictures, and a line or a bar."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from diffusion_cli import __version__, records
from diffusion_cli.artifact import storage
from diffusion_cli.identity import decides, dotted
from diffusion_cli.ranks import standing
from diffusion_cli.trainer import Progress

LEVELS = 10  # parts of [0, 1] for which losses are told apart
_log = logging.getLogger(__name__)


class Meter:
    """Mean loss since the last log, over all and by time, summed on the device.

    Its sums travel in the checkpoint: a resumed run logs the same numbers.
    """

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, LEVELS + 1, dtype=torch.float64, device=device)

    def update(self, progress: Progress) -> None:
        """Take in the finite losses; the last column has those without a time."""
        level = (progress.times * LEVELS).clamp(0, LEVELS - 1)
        column = torch.where(level.isnan(), LEVELS, level).long()
        losses = progress.losses.double()
        finite = losses.isfinite()
        both = torch.stack((losses.where(finite, 0), finite.double()))
        self._sums.index_add_(1, column, both)

    def read(self) -> dict[str, float]:
        """`loss`, and `loss_t<time>` for each part seen; waits for the device."""
        losses, counts = self._sums.tolist()
        values = {"loss": sum(losses) / sum(counts)} if any(counts) else {}
        for part, (loss, count) in enumerate(zip(losses, counts, strict=True)):
            if count and part < LEVELS:
                values[f"loss_t{part / LEVELS:.1f}"] = loss / count
        return values

    def reset(self) -> None:
        """Begin the next interval."""
        self._sums.zero_()

    def plain(self) -> list[list[float]]:
        """The sums, exactly."""
        return self._sums.tolist()

    def restore(self, plain: list[list[float]]) -> None:
        """Take back what `plain` gave (`ValueError`)."""
        sums = torch.tensor(plain, dtype=torch.float64)
        if sums.shape != self._sums.shape:
            raise ValueError(f"the meter has {tuple(sums.shape)} sums")
        self._sums.copy_(sums)


class Tracker:
    """Writes metrics and pictures into a run folder.

    TensorBoard gets the config as hyperparameters, and compares the runs of a sweep by
    their scalars. A line of `metrics.jsonl` and an event of a step after `step` belong
    to a past that is undone; they go. Trouble here is told once, and never ends a run.
    """

    def __init__(self, folder: Path, step: int, config: Mapping[str, Any]) -> None:
        self.folder, self._told = folder, False
        self._step, self._config = step, config
        self.metrics = folder / "metrics.jsonl"
        with storage(self.metrics):
            _truncate(self.metrics, step)

    @cached_property
    def _board(self) -> Any:
        """TensorBoard's writer; who waits for the first step does not wait for it."""
        from torch.utils.tensorboard import SummaryWriter

        folder = str(self.folder / "tensorboard")
        board = SummaryWriter(folder, purge_step=self._step + 1)
        self._mark(board, 1)
        return board

    def _mark(self, board: Any, which: int) -> None:
        """Write the hyperparameters (1), or that the run with them is over (2)."""
        from torch.utils.tensorboard.summary import hparams

        board.file_writer.add_summary(hparams(_plain(self._config), {})[which])

    def log(
        self,
        step: int,
        values: Mapping[str, float],
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Write one line and one point of every curve; `about` goes into the line."""
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values, **(about or {})}) + "\n")
            for name, value in values.items():
                self._board.add_scalar(_curve(name), value, step)
            self._board.flush()
        except OSError as error:
            self._complain(error)

    def picture(self, step: int, picture: Tensor, weights: str) -> None:
        """Keep a picture (3, H, W), uint8, as a file and in TensorBoard."""
        ending = "" if weights == "ema" else f"-{weights}"
        path = self.folder / "samples" / f"step_{step:08d}{ending}.png"
        part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(part, format="PNG")
            part.replace(path)
            self._board.add_image(f"samples/{weights}", picture, step)
        except OSError as error:
            self._complain(error)

    def last_loss(self) -> float | None:
        """The loss of the last line."""
        return last_loss(self.metrics)

    def close(self, complete: bool = False) -> None:
        """Write what is waiting, and that the run is complete."""
        try:
            if complete:
                self._mark(self._board, 2)
            if "_board" in vars(self):
                self._board.close()
        except OSError as error:
            self._complain(error)

    def _complain(self, error: OSError) -> None:
        if not self._told:
            _log.warning("metrics are not written: %s", error)
        self._told = True


class Bar:
    """A progress bar on a terminal, one line per log interval elsewhere."""

    def __init__(self, step: int, steps: int, batch: int) -> None:
        self.steps, self.batch = steps, batch
        self._clock, self._done = time.monotonic(), step
        quiet = _mute() or not sys.stderr.isatty()
        self._tqdm = tqdm(
            total=steps, initial=step, unit="step", dynamic_ncols=True, disable=quiet
        )

    def advance(self) -> None:
        """One step is done."""
        self._tqdm.update()

    def rate(self, step: int) -> float:
        """Samples per second since the last call."""
        now = time.monotonic()
        rate = (step - self._done) * self.batch / max(now - self._clock, 1e-9)
        self._clock, self._done = now, step
        return rate

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that does not count: saving, previews."""
        begun = time.monotonic()
        yield
        self._clock += time.monotonic() - begun

    def show(self, step: int, values: Mapping[str, Any]) -> None:
        """Show the loss and the speed."""
        loss = f"{values['loss']:.4g}" if "loss" in values else "none"
        rate = values["images_per_second"]
        if not self._tqdm.disable:
            self._tqdm.set_postfix_str(f"loss {loss}, {speed(rate)}")
            return
        left = tqdm.format_interval((self.steps - step) * self.batch / max(rate, 1e-9))
        say(f"step {step}/{self.steps}  loss {loss}  {speed(rate)}  left {left}")

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._tqdm.close()


def speed(rate: float) -> str:
    """Samples per second, without an exponent."""
    return f"{rate:,.0f} samples/s" if rate >= 99.5 else f"{rate:.3g} samples/s"


def _mute() -> bool:
    """Whether another process does the talking."""
    place = standing()
    return place is not None and place.rank > 0


def answer(text: object) -> None:
    """Print a result on stdout."""
    if not _mute():
        print(text)


def say(text: str) -> None:
    """Tell the person, on stderr, around a bar; a closed stderr is nobody."""
    if _mute():
        return
    try:
        tqdm.write(text, file=sys.stderr)
    except OSError:
        return


def introduce(config: Mapping[str, Any], where: str, draws: bool) -> None:
    """Two lines that open a run: what and where, then the four choices.

    A classifier has no sampler.
    """
    say(f"dcli {__version__}  {config['name'] or 'train'}  {where}")
    words = []
    for role in ("dataset", "process", "network", *["sampler"] * draws):
        node = config[role]
        inner = node.get("schedule") or node.get("operator") or node.get("shape")
        inner = inner["name"] if isinstance(inner, Mapping) else inner
        detail = f" ({inner})" if inner else ""
        words.append(f"{role}={node['name']}{detail}")
    say("  ".join(words))


def last_loss(metrics: Path) -> float | None:
    """The loss of the last line of `metrics.jsonl`."""
    losses = [line["loss"] for line in records.lines(metrics) if "loss" in line]
    return float(losses[-1]) if losses else None


def _truncate(metrics: Path, step: int) -> None:
    kept = [line for line in records.lines(metrics) if line["step"] <= step]
    part = metrics.with_name(f".{metrics.name}.part")
    part.write_text("".join(json.dumps(line) + "\n" for line in kept))
    part.replace(metrics)


def _plain(config: Mapping[str, Any]) -> dict[str, bool | float | str]:
    """What decides a run, flat, as hyperparameters."""
    return {
        key: value if isinstance(value, bool | int | float) else str(value)
        for key, value in dotted(config).items()
        if value is not None and decides(key)
    }


def _curve(name: str) -> str:
    return f"loss by time/{name[6:]}" if name.startswith("loss_t") else name
