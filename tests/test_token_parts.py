"""Parts around discrete diffusion: data, readings, losses, guidance, metric, runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from choices import formulation, node, options
from measured import Stub
from oracles import Known, number, rows
from tiny import place, tiny
from token_oracles import PROCESSES, Table, build, certain, entropy, table

from diffusion_cli import assemble
from diffusion_cli.commands import sample, train
from diffusion_cli.config import check
from diffusion_cli.core import Categorical, Spec
from diffusion_cli.couplings import couplings
from diffusion_cli.datasets import datasets
from diffusion_cli.denoiser import Model
from diffusion_cli.errors import ConfigError, DataError
from diffusion_cli.guidance import guidances
from diffusion_cli.metrics import metrics
from diffusion_cli.networks import Network
from diffusion_cli.objectives import objectives
from diffusion_cli.parametrisations import parametrisations
from diffusion_cli.rng import Rng
from diffusion_cli.samplers import samplers

__all__ = ["place"]  # a fixture
EVERY = sorted(PROCESSES)
SPEC = Spec((6,), "tokens", vocab=4)
MARKOV = {"name": "markov", "letters": 4, "length": 6, "size": 100}
NETWORK = {"name": "token_transformer", "depth": 1, "width": 8, "heads": 2}
OWN = ("dataset", "process", "parametrisation", "objective", "sampler", "network")
UNIFORM = {"name": "uniform"}
FEW = {"d3pm": {"levels": 20, "beta_max": 4.0}}


def config(process: str, **changes: Any) -> dict[str, Any]:
    """A tiny run of a token process with the parts that its yaml selects."""
    own = formulation(process)
    own["process"] = {**own["process"], **FEW.get(process, {})}
    steps = {"steps": 6} if "steps" in own["sampler"] else {}
    own["sampler"] = {**own["sampler"], **steps}
    own |= {"dataset": MARKOV, "network": {**NETWORK, "dropout": 0.2}}
    return tiny(**(own | changes))


def parts(process: str, **changes: Any) -> assemble.Parts:
    values = config(process, **changes)
    data = assemble.dataset(values)
    return assemble.parts(values, data.spec)


# every reading, objective and sampler of tokens with every process


def tokens_only(role: str) -> list[str]:
    own = {
        "process": EVERY,
        "parametrisation": ["logits", "subs"],
        "objective": ["cross_entropy", "token_bound", "token_hybrid"],
        "sampler": ["tokens", "cached", "first_hitting", "confident"],
    }[role]
    assert set(own) <= set(options(role))
    return own


@pytest.mark.parametrize("process", EVERY)
@pytest.mark.parametrize("reading", tokens_only("parametrisation"))
@pytest.mark.parametrize("sampler", tokens_only("sampler"))
def test_parts_fit_or_are_refused_with_a_reason(
    process: str, reading: str, sampler: str
) -> None:
    masks = process in ("mask", "mask_count")
    late = sampler == "first_hitting" and process == "mask_count"
    walk = node("sampler", sampler)
    walk = {**walk, "steps": 6} if "steps" in walk else walk
    change = {"parametrisation": node("parametrisation", reading), "sampler": walk}
    refused = late or ((reading == "subs" or sampler != "tokens") and not masks)
    early = sampler == "cached" and reading != "subs"
    for name in tokens_only("objective"):
        objective = {"objective": node("objective", name)}
        if refused or early:
            with pytest.raises(ConfigError) as caught:
                parts(process, **change, **objective)
            reason = (
                "a process that masks" if refused else "does not depend on the time"
            )
            assert reason in caught.value.render()
        else:
            assert parts(process, **change, **objective)


def test_tokens_and_numbers_do_not_mix() -> None:
    for process, data in (("mask", "digits"), ("ddpm", "markov")):
        values = config("mask") | {"process": node("process", process)}
        values["dataset"] = node("dataset", data)
        with pytest.raises(ConfigError) as caught:
            assemble.model(values, assemble.spec_of(values))
        assert "works on" in caught.value.render()
        wanted = "dataset=text" if process == "mask" else "process=mask"
        assert wanted in caught.value.hint


def test_a_process_for_other_data_is_one_finding() -> None:
    values = config("mask") | {"process": node("process", "cold_blur")}
    with pytest.raises(ConfigError) as caught:
        assemble.parts(values, assemble.spec_of(values))
    assert not caught.value.more  # not also that tokens are no images
    assert "process=mask" in caught.value.hint


# readings


@pytest.mark.parametrize("name", ["logits", "subs"])
def test_readings_believe_in_tokens_of_the_data_alone(name: str) -> None:
    process = build("mask", 3, 4)
    reading = parametrisations.build({"name": name})
    state = process.state(Spec((4,), "tokens", vocab=3))
    assert reading.out(state) == (4, 4)
    x, out = torch.tensor([[0, 3, 2, 3]]), rows(1).normal((1, 4, 4))
    q = reading.posterior(out, x, number(0.5), process)
    assert isinstance(q, Categorical) and q.logits.shape == (1, 4, 3)
    free = [0, 1, 2, 3] if name == "logits" else [1, 3]
    expected = out[..., :3].softmax(-1)
    torch.testing.assert_close(q.mean[:, free], expected[:, free])
    if name == "subs":
        assert q.mean[0, 0].tolist() == [1, 0, 0] and q.mean[0, 2].tolist() == [0, 0, 1]
        surprise = q.nll(torch.tensor([[0, 1, 2, 1]]))
        assert surprise[0, [0, 2]].tolist() == [0, 0]


def test_subs_shows_the_time_only_if_asked() -> None:
    process, x, t = build("mask"), torch.zeros(2, 3).long(), torch.tensor([0.2, 0.7])
    for time in (False, True):
        reading = parametrisations.build({"name": "subs", "time": time})
        level = reading.inputs(x, t, process)[1]
        assert level.tolist() == (t.tolist() if time else [0, 0])
        assert reading.timeless is not time


def test_guidance_of_logits_extrapolates_and_renormalises() -> None:
    """log p = log p_none + w (log p_label - log p_none), renormalised once."""
    one, two = (rows(2, seed).normal((2, 3, 5)).double() for seed in (0, 1))
    moved = Categorical(one).toward(Categorical(two), 2.5).mean
    p, q = one.softmax(-1), two.softmax(-1)
    expected = q**2.5 / p**1.5
    torch.testing.assert_close(moved, expected / expected.sum(-1, keepdim=True))
    shifted = Categorical(one + 3).toward(Categorical(two - 7), 2.5).mean
    torch.testing.assert_close(shifted, moved)  # constants of logits count for nothing
    sure = certain(torch.tensor([[0, 1, 2]] * 2), 5)
    assert sure.toward(sure, 3.0).mean.isfinite().all()


# losses and the metric


class Fixed(Network):
    """Logits that do not look at the state."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, x, level, label=None, extra=None):  # type: ignore[no-untyped-def]
        return self.logits.expand(len(x), *self.logits.shape)


def unigram(process: str, logits: torch.Tensor) -> Model:
    reading = "subs" if process in ("mask", "mask_count") else "logits"
    more = torch.cat((logits, torch.zeros(1)))
    built = build(process, len(logits), 6)
    own = more if process in ("mask", "mask_count") else logits
    spec = Spec((6,), "tokens", vocab=len(logits))
    net = Fixed(own.expand(6, -1).clone())
    return Model(built, net, parametrisations.build({"name": reading}), spec)


@pytest.mark.parametrize("process", EVERY)
def test_the_loss_is_finite_differentiable_and_its_mean_the_bound(process: str) -> None:
    model = unigram(process, torch.tensor([0.2, -0.4, 0.9]))
    time = {"name": "uniform", "stratified": True}
    own = {"coupling": couplings.build({"name": "independent"})}
    law = objectives.build({"name": "token_bound", "time": time, "ce": 0.0}, **own)
    n = 20_000
    x0 = Rng(1, torch.arange(n)).integers(3, (n, 6))
    losses = law(model, x0, rows(n))
    assert losses.shape == (n,) and losses.dtype == torch.float32
    losses.mean().backward()
    gradient = model.network.logits.grad
    assert gradient.isfinite().all() and gradient.abs().sum() > 0
    if process in ("mask", "mask_count"):  # whatever is visible: the unigram's surprise
        surprise = -model.network.logits[:, :3].log_softmax(-1).mean()
        error = 5 * float(losses.std()) / n**0.5
        assert float(losses.mean()) == pytest.approx(float(surprise), abs=error + 2e-3)
    mixed = objectives.build({"name": "token_bound", "time": time, "ce": 0.5}, **own)
    again = mixed(model, x0, rows(n))
    assert bool((again >= losses).all() and (again > losses).any())


def measured(known: Table, n: int) -> Stub:
    """Data drawn from a table, and a model that knows the table."""
    pick = Rng(5, torch.arange(n)).uniform((n, 1))
    which = (known.p.cumsum(0) <= pick).sum(1).clamp(max=len(known.p) - 1)
    spec = Spec((known.process.length,), "tokens", vocab=known.process.vocab)
    return Stub(known, known.data[which], spec=spec, batch=n)


@pytest.mark.parametrize("process", EVERY)
def test_nelbo_of_the_exact_belief_is_the_entropy_of_the_data(process: str) -> None:
    """T7.3 through the metric: within five standard errors, above by what is known."""
    p, n = table(3, 2, seed=2), 1500
    own = {"levels": 20, "beta_max": 4.0} if process == "d3pm" else {}
    known = Table(process, build(process, 3, 2, **own), p)
    metric = metrics.build({"name": "nelbo", "n": n, "times": 4}, context=None)
    values = metric(measured(known, n)).values
    bits = entropy(p) / (2 * math.log(2))
    error = 5 * values["bits_per_token_se"]
    # two tokens change at once in a discrete step; the prior of edit costs log2(3/2)
    above = {"d3pm": 0.15, "edit": math.log2(1.5), "mask": 2e-3, "uniform": 5e-3}
    found = values["bits_per_token"]
    assert bits - error <= found <= bits + above.get(process, 0.0) + error
    assert values["perplexity"] == pytest.approx(2**found)


def test_the_times_of_nelbo_are_even_over_samples_and_within_each() -> None:
    seen, n = [], 60

    class Watched(Table):
        def forward(self, x, t, **cond):  # type: ignore[no-untyped-def]
            seen.append(t)
            return super().forward(x, t)

    process = build("mask", 3, 2)
    low, high = process.span
    metric = metrics.build({"name": "nelbo", "n": n, "times": 4}, context=None)
    metric(measured(Watched("mask", process, table(3, 2, seed=2)), n))
    *within, last = seen
    assert bool((last == low).all()) and len(within) == 4  # the decoder's
    u = (torch.stack(within) - low) / (high - low)
    quarters = torch.arange(4).double()[:, None] / 4
    torch.testing.assert_close((u - u[0]) % 1, quarters.expand(4, n))
    places = u[0].sort().values
    gaps = torch.cat((places, places[:1] + 1)).diff()  # around the circle
    assert float(gaps.max()) < 3 / n  # of the golden ratio; of chance, about 5 / n


# guidance


class Reading(Known):
    """A context that reads digits as tokens."""

    def prompt(self, text: str, mask: str) -> torch.Tensor:
        return torch.tensor([-1 if c == mask else int(c) for c in text])


def test_infilling_is_exact_conditioning_of_masked_tokens() -> None:
    """First-hitting from a prompt, against the table's own conditional law."""
    process, n, p = build("mask", 2, 3), 8000, table(2, 3, seed=4)
    exact = Table("mask", process, p)
    guide = guidances.build(
        {"name": "infill", "prompt": "_1_"}, denoiser=exact, context=Reading()
    )
    assert guide.timeless
    walk = samplers.build({"name": "first_hitting"})
    *_, x = walk.trajectory(guide, process.prior((n, 3), rows(n)), rows(n))
    assert bool((x[:, 1] == 1).all()) and exact.calls == 2  # the prompt takes none
    sure = guide(torch.tensor([[2, 2, 2]]), number(1.0)).mean[0, 1]
    assert sure.tolist() == [0, 1]
    fits = exact.data[:, 1] == 1
    law = p[fits] / p[fits].sum()
    found = torch.stack([(x == row).all(1).double().mean() for row in exact.data[fits]])
    assert bool(((found - law).abs() < 5 * (law * (1 - law) / n).sqrt()).all())


@pytest.mark.parametrize("process", EVERY)
def test_a_prompt_stays_fixed_whatever_spoils_tokens(process: str) -> None:
    built = build(process)
    guide = guidances.build(
        {"name": "infill", "prompt": "2*0", "mask": "*"},
        denoiser=Table(process, built, table()),
        context=Reading(),
    )
    node = {"name": "ancestral", "steps": built.levels or 20, "grid": UNIFORM}
    walk = samplers.build(node)
    *_, x = walk.trajectory(guide, built.prior((40, 3), rows(40)), rows(40))
    assert bool((x[:, 0] == 2).all() and (x[:, 2] == 0).all())
    assert len(x[:, 1].unique()) == 3


# data


def ready(name: str, **own: Any) -> Any:
    data = datasets[name](**own)
    data.prepare()
    return data


def test_the_text_inside_is_cut_into_windows(tmp_path: Path) -> None:
    whole = ready("text", split="all", length=64)
    train_, test = ready("text", length=64), ready("text", length=64, split="test")
    known = whole.spec.codec["characters"]
    text = "".join(known[i] for i in whole._tokens.tolist())
    assert text.startswith("From fairest creatures") and 20_000 < len(text) < 60_000
    index = torch.tensor([0, 7, len(train_) - 1])
    x0, cond = train_.batch(index, rows(3))
    assert x0.shape == (3, 64) and x0.dtype == torch.int64 and cond == {}
    assert "".join(known[i] for i in x0[1].tolist()) == text[7:71]
    cut = round(len(text) * 0.9)
    assert len(train_) == cut - 63 and len(test) == (len(text) - cut) // 64
    last, _ = test.batch(torch.tensor([1]), rows(1))
    assert "".join(known[i] for i in last[0].tolist()) == text[cut + 64 : cut + 128]
    assert Spec.parse(whole.spec.plain()) == whole.spec


@pytest.mark.parametrize("unit", ["characters", "bytes"])
def test_text_comes_back_from_its_files(unit: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("na\u00efve \u00e9t\u00e9\n" * 30, encoding="utf-8")
    data = ready("text", path=str(path), length=16, unit=unit)
    assert data.fingerprint and data.spec.vocab == (256 if unit == "bytes" else 9)
    x0, _ = data.batch(torch.arange(5), rows(5))
    folder = tmp_path / "out"
    folder.mkdir()
    type(data).save(x0, data.spec, folder, 3)
    assert (folder / "000003.txt").exists()
    assert torch.equal(type(data).load(folder, data.spec), x0)
    picture = type(data).picture(torch.full((3, 16), data.spec.vocab), data.spec)
    assert picture.dtype == torch.uint8 and picture.shape[0] == 3
    shown = type(data).picture(x0, data.spec)
    assert (shown == 0).any()
    assert torch.equal(
        type(data).prompt("t__", data.spec, "_")[1:], -torch.ones(15).long()
    )


def test_text_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"\xff\xfe\xfd" * 99)
    (tmp_path / "short.txt").write_text("abc")
    for own, message in (
        ({"path": str(tmp_path / "no")}, "no such file"),
        ({"path": str(tmp_path / "raw")}, "is not UTF-8"),
        ({"path": str(tmp_path / "short.txt")}, "train part has 3 tokens"),
    ):
        with pytest.raises(DataError, match=message):
            ready("text", **own)
    data = ready("text", length=8)
    cls = type(data)
    with pytest.raises(ConfigError, match="does not know the character '%'"):
        cls.prompt("%", data.spec, "_")
    with pytest.raises(ConfigError, match="9 tokens, the model writes 8"):
        cls.prompt("_________", data.spec, "_")
    with pytest.raises(ConfigError, match="one character"):
        cls.prompt("x", data.spec, "__")
    (tmp_path / "other.txt").write_text("%" * 8)
    with pytest.raises(DataError, match="does not know"):
        cls.load(tmp_path / "other.txt", data.spec)


def test_the_markov_chain_has_the_entropy_it_says() -> None:
    data = ready("markov", letters=3, length=20, size=20_000)
    x0, _ = data.batch(torch.arange(20_000), rows(20_000))
    torch.testing.assert_close(data.start @ data.chain, data.start)
    nats = -data.start[x0[:, 0]].log()
    nats = nats - data.chain[x0[:, :-1], x0[:, 1:]].log().sum(1)
    bits = nats / math.log(2) / 20
    error = 5 * float(bits.std()) / len(bits) ** 0.5
    known = data.spec.codec["bits_per_token"]
    assert float(bits.mean()) == pytest.approx(known, abs=error)
    other = ready("markov", letters=3, length=20, size=20_000, split="test")
    assert torch.equal(other.chain, data.chain)
    assert not torch.equal(other.batch(torch.arange(9), rows(9))[0], x0[:9])


def test_digits_are_the_same_as_tokens(tmp_path: Path) -> None:
    tokens, images = ready("digit_tokens"), ready("digits")
    index = torch.tensor([0, 5, 1796])
    x0, cond = tokens.batch(index, rows(3))
    grey, other = images.batch(index, rows(3))
    assert torch.equal(x0.view(3, 1, 8, 8).float() / 8 - 1, grey)
    assert torch.equal(cond["label"], other["label"])
    type(tokens).save(x0, tokens.spec, tmp_path, 0)
    assert torch.equal(type(tokens).load(tmp_path, tokens.spec), x0)
    for name in ("digits", "digit_tokens"):
        parts = [len(ready(name, split=s)) for s in ("train", "test", "all")]
        assert parts == [1618, 179, 1797]
    held_out = ready("digits", split="test").batch(torch.arange(2), rows(2))[0]
    assert torch.equal(held_out, images.batch(torch.tensor([9, 19]), rows(2))[0])
    hidden = type(tokens).picture(torch.full((1, 64), 17), tokens.spec)
    assert hidden.dtype == torch.uint8 and 100 < int(hidden[0, 10, 10]) < 150


# commands


def test_samples_of_a_run_with_a_prompt_a_film_and_files(place: None) -> None:
    own = {k: v for k, v in config("mask").items() if k in OWN}
    train.run(tiny(out="run", every={"preview": 12}, **own), [])
    asked = {"ckpt": "run", "n": 3, "batch": 3, "out": "drawn", "trajectory": "strip"}
    guide = {"name": "infill", "prompt": "a_b"}
    sampled = check({**asked, "sampler": None, "guidance": guide}, "sample")
    sample.run(sampled, [])
    texts = [Path(f"drawn/00000{i}.txt").read_text() for i in range(3)]
    assert all(text[0] == "a" and text[2] == "b" and len(text) == 6 for text in texts)
    assert Path("drawn/strip.png").exists() and Path("drawn/grid.png").exists()
