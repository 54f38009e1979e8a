"""Text, Markov chains and digits as tokens; commands on them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import rows
from tiny import place, tiny
from token_parts import config

from diffusion_cli.commands import sample, train
from diffusion_cli.config import check
from diffusion_cli.core import Spec
from diffusion_cli.datasets import datasets
from diffusion_cli.errors import ConfigError, DataError

__all__ = ["place"]  # a fixture

OWN = ("dataset", "process", "parametrisation", "objective", "sampler", "network")


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
