"""Every network in the registry keeps the contract."""

import pytest
import torch
from awakened import TOKENS, awake, batch, build, every, gradients, node, outs, reads
from torch import Tensor

from diffusion_cli.core import Spec
from diffusion_cli.networks import networks
from diffusion_cli.networks.blocks import Embedding


def changed(x: Tensor) -> Tensor:
    """Another state."""
    return x + 0.1 if x.is_floating_point() else (x + 1) % TOKENS.vocab


@pytest.mark.parametrize(
    ("name", "out"), [(name, out) for name in networks.names() for out in outs(name)]
)
def test_output_has_the_shape_asked_for_and_starts_at_zero(
    name: str, out: tuple[int, ...]
) -> None:
    output = build(name, out)(*batch(name, dtype=torch.float32))
    assert output.shape == (4, *out)
    assert (output == 0).all()


@pytest.mark.parametrize("name", [n for n in networks.names() if (6, 8, 8) in outs(n)])
def test_a_second_read_out_is_a_head_beside_the_first(name: str) -> None:
    """The weights of a plain network fit by name, and give the same first output."""
    plain, twice = awake(name), awake(name, (6, 8, 8))
    mine, theirs = twice.state_dict(), plain.state_dict()
    fresh = mine.keys() - theirs.keys()
    assert not theirs.keys() - mine.keys()
    assert fresh and all(key.startswith("second.") for key in fresh)
    twice.load_state_dict(mine | theirs)
    first, second = twice(*batch(name)).chunk(2, dim=1)
    assert torch.equal(first, plain(*batch(name)))
    assert second.shape == first.shape and (second != first).all()
    for gradient in gradients(twice, batch(name)):
        assert gradient.abs().sum() > 0


@every
def test_no_label_is_the_label_minus_one(name: str) -> None:
    network, (x, level, label, extra) = awake(name), batch(name)
    none = network(x, level, None, extra)
    assert torch.equal(none, network(x, level, torch.full_like(label, -1), extra))
    assert not torch.allclose(none, network(x, level, label, extra))


@every
def test_no_extra_is_zero(name: str) -> None:
    network, (x, level, label, extra) = awake(name), batch(name)
    none = network(x, level, label)
    assert torch.equal(none, network(x, level, label, torch.zeros_like(extra)))
    assert not torch.allclose(none, network(x, level, label, extra))


@every
def test_every_input_matters(name: str) -> None:
    network, (x, level, *cond) = awake(name), batch(name)
    output = network(x, level, *cond)
    assert not torch.allclose(output, network(changed(x), level, *cond))
    assert not torch.allclose(output, network(x, level + 0.001, *cond))


@every
def test_unconditional_data_have_no_table(name: str) -> None:
    full = reads(name)
    state = Spec(full.shape, full.kind, vocab=full.vocab)
    network = networks.build(node(name), state=state, out=outs(name)[0])
    embedding = next(m for m in network.modules() if isinstance(m, Embedding))
    assert embedding.label is None and embedding.extra is None


@every
def test_samples_of_a_batch_do_not_meet(name: str) -> None:
    network, inputs = awake(name), batch(name)
    whole = network(*inputs)
    for row in range(len(whole)):
        alone = network(*(tensor[row : row + 1] for tensor in inputs))
        torch.testing.assert_close(alone, whole[row : row + 1], rtol=0, atol=1e-12)


@every
def test_every_parameter_gets_a_gradient(name: str) -> None:
    for gradient in gradients(awake(name), batch(name)):
        assert gradient.abs().sum() > 0


@every
def test_bf16_autocast_is_finite_and_near(name: str) -> None:
    network, inputs = awake(name).float(), batch(name, dtype=torch.float32)
    exact = network(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        output = network(*inputs)
    output.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())  # type: ignore[union-attr]
    # A few dozen roundings to 8 bits.
    assert (output - exact).norm() < 0.05 * exact.norm()


def test_rotary_positions_see_differences_alone() -> None:
    """Su et al. 2021: q_m . k_n depends on m - n."""
    from diffusion_cli.networks.token_transformer import angles, turned

    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 8, dtype=torch.float64, generator=generator).unbind()
    turn = angles(12, 8).double()
    products = turned(q.expand(12, 8), turn) @ turned(k.expand(12, 8), turn).T
    for shift in (0, 1, 5):
        own = products.diagonal(shift)
        torch.testing.assert_close(own, own[:1].expand_as(own), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(products[0, 0], q @ k)
    assert not torch.allclose(products[0, 1], products[1, 0])


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_the_order_of_tokens_matters(positions: str) -> None:
    network = awake("token_transformer", positions=positions)
    x, *cond = batch("token_transformer")
    turned = network(x.flip(1), *cond).flip(1)
    assert not torch.allclose(network(x, *cond), turned)
