"""Samples of a checkpoint: whole chunks, drawn in order and kept."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_cli import device as devices
from diffusion_cli.checkpoint import Checkpoint
from diffusion_cli.device import memory
from diffusion_cli.errors import ConfigError, NumericsError
from diffusion_cli.gallery import Gallery
from diffusion_cli.odes import encode
from diffusion_cli.paths import typed
from diffusion_cli.place import fingerprint, kind
from diffusion_cli.rebuild import Rebuilt, labels
from diffusion_cli.rng import Rng
from diffusion_cli.stop import Stop
from diffusion_cli.tracking import say
from diffusion_cli.world import Alone, World

Config = dict[str, Any]


class Given(NamedTuple):
    """Clean samples to start from; sample i has the given one i mod N.

    `encode` starts where the probability-flow ODE of the unguided model leads them,
    `restore` from x_t at the last time of the process, `degraded` takes them for it.
    """

    x0: Tensor  # (N, ...)
    how: Literal["encode", "restore", "degraded"]

    def of(self, rows: Tensor) -> Tensor:
        """What these samples start from, on their device."""
        return self.x0[rows.cpu() % len(self.x0)].to(rows.device)


class Way(NamedTuple):
    """`n` samples on the way from one x_1 to the next, in even steps.

    An end is the x_1 of the first sample of a seed, or that of a given sample. Label
    and noise of the steps are those of the first sample, all the way.
    """

    ends: tuple[int, ...]
    n: int

    def places(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """After which end each sample lies, and which share of the way to the next."""
        last = len(self.ends) - 1
        place = (rows.double() * last / (self.n - 1)).clamp(max=last)
        before = place.long().clamp(max=last - 1)
        return before, place - before


class _Totals(NamedTuple):
    """What all processes did so far."""

    rows: int  # that the network saw
    chunks: int
    counts: dict[str, int]  # of the sampler


DECIDING = ("seed", "label", "batch", "weights", "dtype", "precision")


class Drawing:
    """One request to a checkpoint: the same one finds the same folder.

    Args:
        found: The checkpoint.
        built: Its model, sampler and guidance.
        values: The keys of `DECIDING`: with checkpoint and parts, all that decides.
        device: Where to draw.
        stop: Asked between two steps.
        given: Samples to start from instead of the prior.
        way: Samples lie on it instead of anywhere.
        out: The folder; None is one in the run, named by the request.
        world: The processes that share the chunks.
    """

    def __init__(
        self,
        found: Checkpoint,
        built: Rebuilt,
        values: Mapping[str, Any],
        device: torch.device,
        stop: Stop,
        given: Given | None = None,
        way: Way | None = None,
        out: str | None = None,
        world: World | None = None,
    ) -> None:
        self.found, self.built, self.values = found, built, values
        self.world = world or Alone()
        self.device, self.stop, self.given, self.way = device, stop, given, way
        self._ends: Tensor | None = None
        self.classes = labels(self._label(), found.spec, found.config)
        self.dtype = getattr(torch, values["dtype"])
        request = {key: values[key] for key in DECIDING} | built.chosen
        request |= {"checkpoint": found.hash, "device": device.type}
        if built.place.used:
            request["used"] = built.place.used
        if given is not None:
            end = built.model.process.span[1]
            request["given"] = f"{given.how} {fingerprint(given.x0)} {end}"
        request |= {"way": way} if way else {}
        request = json.loads(json.dumps(request))
        folder = typed(out, "out") if out else self._folder(request)
        batch = values["batch"]
        self.gallery = Gallery(folder, kind(found), found.spec, batch, request)
        self.rows_seen = self.chunks_drawn = 0  # by this process
        self.totals = _Totals(0, 0, {})

    def _label(self) -> Any:
        """The label asked for; what is given without one is drawn without one."""
        asked, given = self.values["label"], self.given
        if given is None or not self.found.spec.classes:
            return asked
        encoding = given.how == "encode"
        knows_none = bool(self.found.config["objective"].get("drop"))
        if not knows_none and (encoding or asked is None):
            word = "encode" if encoding else "restore"
            message = f"{word}: the model was trained with a label for every sample"
            hint = "dcli train ... objective.drop=0.1"
            raise ConfigError(message, hint if encoding else f"label=..., or {hint}")
        return -1 if asked is None else asked

    def draw(self, n: int, film: str | None = None) -> None:
        """Draw what is missing of the first `n`, and a film of the first chunk."""
        batch, steps = self.values["batch"], self.built.sampler.steps
        how = self.built.chosen["sampler"]["name"] + f", {steps} steps" * bool(steps)
        how += f", seed {self.values['seed']}, {devices.label(self.device)}"
        say(f"{self.found.folder} ({self.values['weights']} weights), {how}")
        chunks = self.gallery.missing(n)
        self.world.meet()  # all know what is missing before anyone draws
        if film and 0 not in chunks:
            chunks = [0, *chunks]
        total = -(-n // batch)
        if len(chunks) < total:
            done = min((total - len(chunks)) * batch, n)
            say(f"{done}/{n} already done")
        self.stop.begin()
        own = chunks[self.world.rank :: self.world.size]
        whole = len(own) * steps or None
        with (
            tqdm(total=whole, unit="step", disable=None, dynamic_ncols=True) as bar,
            self._counting(),
        ):
            for chunk in own:
                x, states = self._chunk(chunk, bar, bool(film) and chunk == 0)
                self.gallery.keep(chunk, x)
                self.chunks_drawn += 1
                if film and states:
                    self.gallery.film(states, film)
        self.world.meet()  # one chunk more is no rank that hangs
        counts = self.built.sampler.counted()
        mine = torch.tensor([[self.rows_seen, self.chunks_drawn, *counts.values()]])
        rows, drawn, *totals = self.world.gather(mine).sum(0).tolist()
        self.totals = _Totals(rows, drawn, dict(zip(counts, totals, strict=True)))
        if self.totals.chunks:
            took = {"network_calls_per_sample": self.calls(), **self.counted()}
            self.world.once(lambda: self.gallery.note(took))

    def labels(self, rows: Tensor) -> Tensor | None:
        """The class of every sample: a function of (seed, i), or what was asked for."""
        spec = self.built.model.spec
        if not spec.classes:
            return None
        if self.classes is None:
            rows = torch.zeros_like(rows) if self.way else rows
            rng = Rng(self.values["seed"], rows).child("label")
            return rng.integers(spec.classes, (len(rows),))
        wanted = torch.tensor(self.classes, device=rows.device)
        return wanted[rows % len(wanted)]

    def calls(self) -> float:
        """Network calls per sample: counted now, or by the run that drew them."""
        if self.totals.chunks:
            rows = self.totals.rows / self.totals.chunks
            return rows / float(self.values["batch"])
        expected = self.built.sampler.calls(self.built.sampler.steps)
        return float(self._told().get("network_calls_per_sample", expected))

    def counted(self) -> dict[str, int]:
        """What the sampler counted, now or when the samples were drawn."""
        if self.totals.chunks:
            return self.totals.counts
        told = self._told()
        return {name: told[name] for name in self.totals.counts if name in told}

    def _told(self) -> Config:
        """What an earlier command noted of these samples."""
        return self.gallery.noted()

    def _folder(self, request: Config) -> Path:
        text = json.dumps(request, sort_keys=True)
        tag = hashlib.sha256(text.encode()).hexdigest()[:8]
        sampler = request["sampler"]
        words = [sampler["name"], str(sampler.get("steps") or ""), tag]
        return self.found.home / "samples" / "-".join(filter(None, words))

    def _chunk(self, chunk: int, bar: Any, filmed: bool) -> tuple[Tensor, list[Tensor]]:
        """The samples of one chunk, padded to `batch`, and its states if filmed."""
        batch, spec = self.values["batch"], self.built.model.spec
        process = self.built.model.process
        rows = torch.arange(chunk * batch, (chunk + 1) * batch, device=self.device)
        label = self.labels(rows)
        own = torch.zeros_like(rows) if self.way else rows
        rng = Rng(self.values["seed"], own).child("sample")
        cond = {"rows": own} if label is None else {"rows": own, "label": label}
        denoiser = self.built.denoiser.given(**cond)
        shape = tuple(process.state(spec).shape)
        x = self._on_the_way(shape, rows) if self.way else self._start(shape, cond, rng)
        x = x.to(self.dtype) if x.is_floating_point() else x
        states = [self.gallery.shown(x)] if filmed else []
        fewer = max(1, batch // 2)
        with memory(f"sample: batch={batch}", f"batch={fewer}"):
            walk = self.built.sampler.trajectory(denoiser, x, rng)
            sound: list[Tensor] = []  # on the device, a flag for each step
            for x in walk:
                if self.stop.requested:
                    self.stop.end("the same command continues")
                if filmed:
                    states.append(self.gallery.shown(x))
                sound.append(x.isfinite().all())
                bar.update()
        if not bool(x.isfinite().all()):
            name, flags = self.built.chosen["sampler"]["name"], torch.stack(sound)
            where = f"at step {int((~flags).nonzero()[0]) + 1} of {len(flags)}"
            what = f"sampler `{name}` left the finite numbers {where}"
            message = f"sample: NONFINITE: {what}"
            raise NumericsError(message, "steps=<more>, or precision=fp32", "NONFINITE")
        return x.float() if x.is_floating_point() else x, states

    def _start(
        self, shape: tuple[int, ...], cond: dict[str, Tensor], rng: Rng
    ) -> Tensor:
        """x_1 of samples: from the prior, or from given samples."""
        process, given = self.built.model.process, self.given
        if given is None:
            return process.prior((len(rng), *shape), rng)
        x0 = given.of(rng.rows)
        if given.how == "encode":
            if "label" in cond:
                cond = {**cond, "label": torch.full_like(cond["label"], -1)}
            model = self.built.model.given(**cond)
            return encode(model, x0, rtol=1e-5, atol=1e-5, counts=Counter())
        return x0 if given.how == "degraded" else self.spoilt(rng.rows)

    def spoilt(self, rows: Tensor) -> Tensor:
        """x_t of the given samples, at the time where restoring starts."""
        assert self.given is not None
        rng = Rng(self.values["seed"], rows).child("sample")
        process, x0 = self.built.model.process, self.given.of(rows)
        t = torch.tensor(process.span[1], dtype=torch.float64)
        return process.corrupt(x0, t, process.noise(x0, rng))

    def _on_the_way(self, shape: tuple[int, ...], rows: Tensor) -> Tensor:
        """x_1 of samples between the ends of a way."""
        assert self.way is not None
        if self._ends is None:
            self._ends = torch.cat([self._end(shape, end) for end in self.way.ends])
        before, share = self.way.places(rows)
        a, b = self._ends[before], self._ends[before + 1]
        return self.built.model.process.between(a, b, share)

    def _end(self, shape: tuple[int, ...], end: int) -> Tensor:
        """x_1 of the first sample of a seed, or of a given sample."""
        given = self.given is not None
        rows = torch.tensor([end if given else 0], device=self.device)
        rng = Rng(self.values["seed"] if given else end, rows).child("sample")
        label = torch.full_like(rows, -1)  # what is encoded, is so without a label
        cond = {"rows": rows, "label": label} if self.built.model.spec.classes else {}
        return self._start(shape, cond, rng)

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """Count the rows that pass through every network."""
        models = (self.built.model, *self.built.place.models)
        hooks = [m.network.register_forward_hook(self._count) for m in models]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _count(self, network: Any, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        self.rows_seen += len(inputs[0])
