"""`dcli sample`: a sample depends on (checkpoint, sampler, seed, its index) alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Dcli
from PIL import Image

from diffusion_cli.cli import main
from diffusion_cli.gallery import Gallery

DIGITS = ["dataset=digits", "process=edm", "network.channels=16", "objective.drop=0.1"]
TOY = ["dataset=toy2d", "process=flow", "network.width=16", "network.depth=1"]
SMALL = [
    *("trainer.steps=3", "trainer.batch=8", "trainer.precision=fp32"),
    *("every.preview=0", "every.log=3", "sampler.steps=3"),
]
FAST = ["precision=fp32", "device=cpu"]


def trained(folder: Path, words: list[str]) -> Path:
    assert main(["train", *words, *SMALL, f"out={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "digits", DIGITS)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "toy", TOY)


def arrays(dcli: Dcli, run: Path, *words: str) -> dict[str, np.ndarray]:
    got = dcli("sample", f"ckpt={run}", "format=npz", *FAST, *words)
    assert got.code == 0, got.err
    with np.load(Path(got.out.strip()) / "samples.npz") as file:
        return dict(file)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.*")}


def test_files_a_picture_and_a_path_on_stdout(dcli: Dcli, digits: Path) -> None:
    got = dcli("sample", f"ckpt={digits}", "n=5", "batch=4", *FAST)
    folder = Path(got.out.strip())
    assert got.code == 0 and folder.parent == digits / "samples"
    names = sorted(path.name for path in folder.glob("*.png"))
    assert names == [f"00000{i}.png" for i in range(5)] + ["grid.png"]
    assert Image.open(folder / "000000.png").size == (8, 8)
    assert "5 samples, 3 steps, 5 network calls each" in got.err
    about = json.loads((folder / "about.json").read_text())
    assert about["network_calls_per_sample"] == 5 and about["sampler"]["name"] == "heun"


def test_a_sample_does_not_depend_on_n_or_on_restarts(
    dcli: Dcli, digits: Path, tmp_path: Path
) -> None:
    few = arrays(dcli, digits, "n=5", "batch=4", f"out={tmp_path / 'few'}")
    many = arrays(dcli, digits, "n=11", "batch=4", f"out={tmp_path / 'many'}")
    more = arrays(dcli, digits, "n=11", "batch=4", f"out={tmp_path / 'few'}")
    for name in ("samples", "labels"):
        assert np.array_equal(many[name][:5], few[name])
        assert np.array_equal(many[name], more[name])
    assert len(np.unique(many["samples"], axis=0)) == 11


def test_a_huge_n_says_what_it_draws_and_looks_only_at_what_is_there(
    dcli: Dcli, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    whole = Gallery._whole

    def look(gallery: Gallery, chunk: int) -> bool:
        looked.append(chunk)
        return whole(gallery, chunk)

    def ready(gallery: Gallery, chunk: int, x: object) -> None:
        raise KeyboardInterrupt

    words = ["sample", f"ckpt={digits}", "batch=2", "steps=1", "out=huge", *FAST]
    assert dcli(*words, "n=5").code == 0
    monkeypatch.setattr(Gallery, "_whole", look)
    monkeypatch.setattr(Gallery, "keep", ready)
    got = dcli(*words, "n=1000000")
    assert got.code == 130 and sorted(looked) == [0, 1, 2]
    assert "6/1000000 already done" in got.err

    monkeypatch.setattr(Gallery, "missing", lambda gallery, n: 1 / 0)
    assert "heun, 1 steps" in dcli(*words, "n=1000000").err


def test_another_batch_changes_the_last_bits_only(dcli: Dcli, digits: Path) -> None:
    four = arrays(dcli, digits, "n=8", "batch=4")["samples"]
    eight = arrays(dcli, digits, "n=8", "batch=8")["samples"]
    assert np.abs(four - eight).max() <= 1e-5


def test_another_seed_is_another_sample(dcli: Dcli, digits: Path) -> None:
    first = arrays(dcli, digits, "n=4", "batch=4")["samples"]
    second = arrays(dcli, digits, "n=4", "batch=4", "seed=1")["samples"]
    assert np.abs(first - second).max() > 0.1


@pytest.mark.parametrize("fault", ["sample.chunk@1", "sample.write@4"])
def test_killed_and_run_again_gives_the_same_files(
    dcli: Dcli, digits: Path, tmp_path: Path, fault: str
) -> None:
    def words(name: str) -> list[str]:
        out = f"out={tmp_path / name}"
        return ["sample", f"ckpt={digits}", "n=10", "batch=4", out, *FAST]

    assert dcli(*words("control")).code == 0
    command = [sys.executable, "-m", "diffusion_cli", *words("killed")]
    environment = os.environ | {"DCLI_FAULT": f"{fault}:kill"}
    killed = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert killed.returncode == -9
    for path in (tmp_path / "killed").glob("*.png"):
        Image.open(path).load()  # no torn picture
    again = dcli(*words("killed"))
    assert again.code == 0 and "already done" in again.err
    assert files(tmp_path / "killed") == files(tmp_path / "control")


def test_nothing_but_the_checkpoint_is_needed(
    dcli: Dcli, digits: Path, tmp_path: Path
) -> None:
    step = next((digits / "checkpoints").iterdir())
    copy = shutil.copytree(step, tmp_path / "elsewhere" / "weights")
    here = arrays(dcli, digits, "n=4", "batch=4")["samples"]
    there = arrays(dcli, copy, "n=4", "batch=4")["samples"]
    assert np.array_equal(here, there)


def test_labels_by_name_index_and_list(dcli: Dcli, digits: Path) -> None:
    drawn = arrays(dcli, digits, "n=9", "batch=4")["labels"]
    assert set(drawn) <= set(range(10)) and len(set(drawn)) > 1
    cycled = arrays(dcli, digits, "n=5", "batch=4", "label=[3,7]")["labels"]
    assert cycled.tolist() == [3, 7, 3, 7, 3]
    assert arrays(dcli, digits, "n=2", "label=-1")["labels"].tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["label=99"], "label: there is no class 99"),
        (["label=[]"], "label: the list is empty"),
        (["label=cat"], "label: there is no class 'cat'"),
        (["n=0"], "n: must be >= 1"),
        (["steps=0"], "steps: must be >= 1"),
        (["seed=-1"], "seed: must be in"),
        (["steps=5", "nfe=9"], "nfe: give steps= or nfe=, not both"),
        (["nfe=0"], "nfe: must be >= 1"),
        (["format=jpg"], "format"),
        (["sampler.chrun=3"], "did you mean `churn`"),
        (["sampler=heuns"], "heun"),
        (["weights=best"], "raw"),
        (["dtype=float16"], "float32"),
    ],
)
def test_refusals(dcli: Dcli, digits: Path, words: list[str], message: str) -> None:
    before = sorted(digits.rglob("*"))
    got = dcli("sample", f"ckpt={digits}", *FAST, *words)
    assert got.code in (2, 4) and message in got.err
    assert "Traceback" not in got.err and got.err.splitlines()[0].startswith("error")
    assert sorted(digits.rglob("*")) == before


def test_a_label_for_an_unconditional_model_is_refused(dcli: Dcli, toy: Path) -> None:
    got = dcli("sample", f"ckpt={toy}", "label=1")
    assert got.code == 2 and "unconditional" in got.err


def test_steps_calls_samplers_and_guidance(dcli: Dcli, digits: Path) -> None:
    said = {
        ("nfe=10",): "5 steps, 9 network calls each",
        ("sampler=dpmpp", "nfe=10"): "10 steps, 10 network calls each",
        (
            "guidance=cfg",
            "steps=3",
        ): "3 steps, 5 denoiser calls (nfe), 10 network calls each",
        ("sampler=ddim", "steps=4"): "4 steps, 4 network calls each",
        ("sampler.churn=20", "sampler.steps=4"): "4 steps, 7 network calls each",
    }
    for words, text in said.items():
        got = dcli("sample", f"ckpt={digits}", "n=2", "batch=2", *FAST, *words)
        assert got.code == 0 and text in got.err, got.err


def test_weights_and_precision_of_the_state(dcli: Dcli, digits: Path) -> None:
    ema = arrays(dcli, digits, "n=2", "batch=2")["samples"]
    raw = arrays(dcli, digits, "n=2", "batch=2", "weights=raw")["samples"]
    exact = arrays(dcli, digits, "n=2", "batch=2", "dtype=float64")["samples"]
    assert not np.array_equal(ema, raw)
    assert 0 < np.abs(ema - exact).max() < 1e-3  # ulps of a state of size 80


def length(film: Image.Image) -> int:
    """Milliseconds that a film lasts."""
    total = 0
    for frame in range(film.n_frames):  # type: ignore[attr-defined]
        film.seek(frame)
        total += film.info["duration"]
    return total


@pytest.mark.parametrize("form", ["gif", "strip"])
def test_trajectories(dcli: Dcli, digits: Path, toy: Path, form: str) -> None:
    for run in (digits, toy):
        got = dcli("sample", f"ckpt={run}", "n=64", f"trajectory={form}", *FAST)
        name = {"gif": "trajectory.gif", "strip": "strip.png"}[form]
        picture = Image.open(Path(got.out.strip()) / name)
        if form == "gif":
            # equal neighbours are one frame: the prior, three steps, a last look
            assert picture.n_frames > 1 and length(picture) == 3 * 80 + 1500
        else:
            assert picture.width == 4 * picture.height


def test_points_get_a_scatter_plot(dcli: Dcli, toy: Path) -> None:
    got = dcli("sample", f"ckpt={toy}", "n=50", "format=grid", *FAST)
    picture = Image.open(Path(got.out.strip()) / "grid.png").convert("RGB")
    assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 2


def hostile(run: Path, folder: Path, change: dict[str, object]) -> Path:
    """A copy of the newest checkpoint whose config says something else."""
    copy = shutil.copytree(next((run / "checkpoints").iterdir()), folder)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["config"] |= change
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": {"_target_": "os.system", "name": "unet"}}, "_target_"),
        ({"network": {"_target_": "os.system"}}, "name"),
        ({"network": {"name": "theirs"}, "plugins": ["./theirs.py"]}, "theirs"),
        ({"process": {"name": "gaussian", "schedule": 3}}, "schedule"),
        ({"seed": None}, "seed is None"),
        ({"seed": "x"}, "seed is 'x'"),
        ({"objective": ["drop"]}, "objective is"),
        ({"dataset": "digits"}, "dataset `None`"),
        ({"sampler": None}, "sampler: expected a component"),
        ({"guidance": [5]}, "guidance: expected a component"),
        (
            {"process": {"name": "gaussian", "schedule": {"name": "vp", "floor": 2}}},
            "floor",
        ),
    ],
)
def test_a_checkpoint_never_causes_code_to_be_imported(
    dcli: Dcli, digits: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    (tmp_path / "theirs.py").write_text("open('touched', 'w').close()\n")
    copy = hostile(digits, tmp_path / "copy", change)
    got = dcli("sample", f"ckpt={copy}", *FAST)
    assert got.code == 4 and message in got.err and "Traceback" not in got.err
    assert not (tmp_path / "touched").exists()


def test_a_folder_holds_the_samples_of_one_request(dcli: Dcli, digits: Path) -> None:
    words = ("sample", f"ckpt={digits}", "n=2", "batch=2", "out=here", *FAST)
    assert dcli(*words).code == 0
    about = json.loads(Path("here/about.json").read_text())
    got = dcli(*words, "seed=1", "label=3")
    assert got.code == 2 and "holds samples of another seed, label" in got.err
    assert json.loads(Path("here/about.json").read_text()) == about
    assert dcli(*words, "n=3", "format=grid").code == 0


def test_what_is_told_is_what_was_done(dcli: Dcli, digits: Path) -> None:
    got = dcli("sample", f"ckpt={digits}", "n=2", "batch=2", "nfe=7", *FAST)
    about = json.loads((Path(got.out.strip()) / "about.json").read_text())
    assert about["sampler"]["steps"] == 4 and about["network_calls_per_sample"] == 7
