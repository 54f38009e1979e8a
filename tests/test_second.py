"""Variances learned by a head of their own: T5.2, T5.4."""

import math
from itertools import pairwise

import pytest
import torch
from oracles import NormalData, Still, gaussian, number, rows, scales
from second_moments import objective, reading
from torch import nn

from diffusion_cli.core import Normal, Spec
from diffusion_cli.denoiser import Denoiser, Model
from diffusion_cli.errors import ConfigError
from diffusion_cli.networks import Network
from diffusion_cli.objectives import TimeLaw
from diffusion_cli.parametrisations import parametrisations
from diffusion_cli.samplers import grids

READINGS = ["eps", "x0", "v", "velocity", "score", "edm"]


def inverse(value):
    """The output that `npr` and `sn` read as a positive value."""
    return torch.log(torch.expm1(torch.as_tensor(value))) - math.log(math.e - 1)


class Wrong(Network):
    """k times the exact noise of data N(0, s2), and a head that is one number."""

    def __init__(self, process, s2, k=1.0, head=0.0):
        super().__init__()
        self.process, self.s2, self.k = process, s2, k
        self.head = nn.Parameter(torch.tensor(head))

    def forward(self, x, level, label=None, extra=None):
        scales = self.process.at(level.double(), x)
        v = scales.alpha**2 * self.s2 + scales.sigma**2
        eps = self.k * scales.sigma / v * x
        return torch.cat([eps, self.head.expand_as(x)], dim=1)


class Always(TimeLaw):
    """One time."""

    def __init__(self, t):
        super().__init__()
        self.t = t

    def forward(self, process, rng):
        return self.t.expand(len(rng))


class Trusted(Denoiser):
    """The exact moments of data N(0, s2), read by a parametrisation."""

    def __init__(self, process, name, s2):
        super().__init__()
        self.process, self.name, self.s2 = process, name, s2

    def forward(self, x, t, **cond):
        k = scales(self.process, t, x)
        v = k.alpha**2 * self.s2 + k.sigma**2
        eps, left = k.sigma / v * x, k.alpha**2 * self.s2 / v  # left = E (n - eps)^2
        moments = {
            "npr": left * (k.alpha**2 + k.sigma**2) / k.alpha**2,
            "sn": left + eps.square(),
        }
        second = inverse(moments[self.name]).expand_as(x)
        out = torch.cat([eps, second], dim=1)
        return reading(self.name).posterior(out, x, t, self.process)


@pytest.mark.parametrize("name", ["npr", "sn"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("s2", [0.25, 1.0, 4.0])
def test_exact_moments_keep_the_variance_of_normal_data(name, eta, s2):
    """T5.2 and G7 through the heads: five steps, any eta, to 1e-10."""
    process = gaussian("linear")
    q = Trusted(process, name, s2)
    times = grids.build({"name": "uniform"})(process, 5)
    variance = NormalData(process, s2).variance(times[0])
    zero, one = torch.zeros(1, 1).double(), torch.ones(1, 1).double()
    for t, s in pairwise(times):

        def step(x, z, t=t, s=s):
            how = {"eta": eta, "final": "draw"}
            return process.reverse(q(x, t), x, t, s, Still(z), **how)

        gain, spread = step(one, 0.0) - step(zero, 0.0), step(zero, 1.0)
        variance = gain**2 * variance + spread**2
    assert float(variance) == pytest.approx(s2, rel=1e-10)


@pytest.mark.parametrize(("name", "expected"), [("npr", 0.505), ("sn", 0.595)])
@pytest.mark.parametrize("k", [0.9, 1.0])
def test_a_wrong_mean_is_seen_by_npr_and_not_by_sn(name, expected, k):
    """T5.4: k = 0.9, Gamma = 1/2. A head that is one number learns the average."""
    process, n = gaussian("vp"), 20_000
    s2 = number(0.25)
    t = process.schedule.time(s2.sqrt())  # alpha^2 s2 = sigma^2: Gamma = 1/2
    scales = process.schedule(t)
    gamma = scales.sigma**2 / (scales.alpha**2 * s2 + scales.sigma**2)
    law = {
        "npr": 1 - 2 * k * gamma + k**2 * gamma,
        "sn": torch.tensor(1.0).double(),  # E n^2, of which k^2 Gamma is known
    }
    known = {"npr": 0.0, "sn": k**2 * gamma}
    assert float(gamma) == pytest.approx(0.5, abs=1e-12)
    left = float(law[name] - known[name])
    assert left == pytest.approx(expected if k == 0.9 else 0.5, abs=1e-12)
    net = Wrong(process, s2, k)
    model = Model(process, net, reading(name), Spec((1,)))
    loss = objective("second_moment")
    loss.time = Always(t)
    x0 = rows(n).normal((n, 1), torch.float64) * s2.sqrt()
    optimizer = torch.optim.LBFGS([net.head], max_iter=10)

    def closure():
        optimizer.zero_grad()
        value = loss(model, x0, rows(n, 3)).mean()
        value.backward()
        return value

    optimizer.step(closure)
    x = torch.zeros(1, 1).double()
    out = net(x, t.expand(1))
    g, _ = model.parametrisation.moment(out, x, t.expand(1), x, process)
    learned = float(g.detach()) - float(known[name])
    error = float(law[name]) * (2 / n) ** 0.5  # of a mean of squared normals
    assert learned == pytest.approx(left, abs=4 * error)


def test_npr_and_sn_agree_only_for_the_exact_mean():
    """T5.4 state by state: 1 - Gamma + (1 - k)^2 e(x)^2 against 1 - Gamma + ...: SN
    takes k^2 e(x)^2 off E[n^2 | x] = 1 - Gamma + e(x)^2."""
    process, s2, t = gaussian("vp"), 0.25, number(0.4).expand(5)
    x = rows(5).normal((5, 1)).double()
    k = scales(process, t, x)
    v = k.alpha**2 * s2 + k.sigma**2
    exact, left = k.sigma / v * x, 1 - k.sigma**2 / v
    ratio = (k.sigma / k.alpha) ** 2
    for factor in (1.0, 0.9):
        heads = {
            "npr": left + ((1 - factor) * exact).square(),
            "sn": left + exact.square(),
        }
        scaled = heads["npr"] * (k.alpha**2 + k.sigma**2) / k.alpha**2
        seconds = {"npr": inverse(scaled), "sn": inverse(heads["sn"])}
        expected = {
            "npr": heads["npr"],
            "sn": left + (1 - factor**2) * exact.square(),
        }
        for name, second in seconds.items():
            out = torch.cat([factor * exact, second], dim=1)
            q = reading(name).posterior(out, x, t, process)
            torch.testing.assert_close(q.var, ratio * expected[name])


@pytest.mark.parametrize("mean", READINGS)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_learned_ends_are_beta_and_beta_tilde(mean, schedule):
    """nu = 1 makes the step's variance beta, nu = -1 beta-tilde, whatever the mean."""
    process, levels = gaussian(schedule), 1000
    t = torch.tensor([2, 3, 500, 999, 1000], dtype=torch.float64) / levels
    x = rows(5).normal((5, 2)).double()
    a, b = process.at(t, x), process.at(t - 1 / levels, x)
    beta = 1 - (a.alpha / b.alpha) ** 2
    tilde = beta * b.sigma**2 / a.sigma**2
    for nu, var in ((1.0, beta), (-1.0, tilde), (0.2, beta**0.6 * tilde**0.4)):
        out = torch.cat([torch.zeros_like(x), torch.full_like(x, nu)], dim=1)
        q = reading("learned", mean).posterior(out, x, t, process)
        for row in range(5):
            one = Normal(torch.zeros_like(x[row]), q.var[row])
            s, zero = t[row] - 1 / levels, torch.zeros_like(x[row])
            step = process.reverse(one, zero, t[row], s, Still(1.0))
            expected = var[row].sqrt().expand_as(step)
            torch.testing.assert_close(step, expected, rtol=1e-7, atol=0)


def test_learned_takes_the_second_small_variance_at_the_first_time():
    process, t = gaussian("linear"), number(1e-3)
    k = process.schedule(torch.tensor([1e-3, 2e-3], dtype=torch.float64))
    beta = 1 - (k.alpha[1] / k.alpha[0]) ** 2
    small, large = beta * k.sigma[0] ** 2 / k.sigma[1] ** 2, k.sigma[0] ** 2
    for nu, var in ((-1.0, small), (1.0, large), (0.0, (small * large).sqrt())):
        x = torch.zeros(1, 1).double()
        out = torch.tensor([[0.0, nu]]).double()
        got = reading("learned").posterior(out, x, t, process).var
        torch.testing.assert_close(got, var.reshape(1, 1), rtol=1e-9, atol=0)


def test_learned_is_never_negative_and_never_dead():
    process, t = gaussian("linear"), number(0.5).expand(2)
    out = torch.tensor([[0.0, -3.0], [0.0, 9.0]]).double().requires_grad_()
    q = reading("learned", bound=0.5).posterior(out, out[:, :1], t, process)
    assert q.var[0] == 0 and q.var[1] == 0.5
    (gradient,) = torch.autograd.grad(q.var.sum(), out)
    assert (gradient[:, 1] > 0).all()


@pytest.mark.parametrize("name", ["learned", "npr", "sn"])
@pytest.mark.parametrize("schedule", ["linear", "vp", "karras", "ve", "straight"])
def test_every_reading_is_a_mean_and_beliefs_are_sound(name, schedule):
    """0 <= C <= (sigma / alpha)^2 and the bound, and no NaN in float32 (T5.5)."""
    process = gaussian(schedule)
    for mean in READINGS:
        part = reading(name, mean, bound=1.0)
        plain = parametrisations.build({"name": mean})
        if part.fits(process):
            undefined = plain.fits(process) or name == "sn"
            assert undefined and not process.bounded
            continue
        assert part.out(Spec((3, 8, 8))) == (6, 8, 8)
        for t in (process.span[0], 0.5, process.span[1]):
            when = number(t).expand(8)
            x = process.corrupt(rows(8).normal((8, 2)), when, rows(8, 1).normal((8, 2)))
            out = 3 * rows(8, 2).normal((8, 4))
            q = part.posterior(out, x, when, process)
            assert torch.equal(
                q.mean, plain.posterior(out[:, :2], x, when, process).mean
            )
            assert q.var.dtype == torch.float32 and q.var.shape == x.shape
            assert (q.var >= 0).all() and (q.var <= 1).all()


@pytest.mark.parametrize("mean", [{"name": "npr", "mean": {"name": "eps"}}])
def test_a_mean_is_a_reading_of_one_output(mean):
    with pytest.raises(ConfigError, match="a reading of one output"):
        parametrisations.build({"name": "learned", "mean": mean})
