"""`dcli doctor`: what it says is so, and it notices what is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Dcli

from diffusion_cli import environment
from diffusion_cli.commands import doctor


def test_what_it_finds(dcli: Dcli, tmp_path: Path) -> None:
    told = dcli("doctor", "--json")
    assert told.code == 0, told.err
    found = json.loads(told.out)
    assert found["versions"] == environment.versions()
    assert found["device"]["threads"] == torch.get_num_threads()
    assert found["folders"]["runs"]["writable"] and not (tmp_path / "runs").exists()
    here = {key: row["here"].split(":")[0] for key, row in found["promises"].items()}
    assert list(here) == ["R0", "R1", "R2", "R3", "R4", "R5"]
    if not torch.cuda.is_available():
        assert here["R1"] == here["R4"] == here["R0"] == here["R5"] == "holds"
    assert list(tmp_path.iterdir()) == []


def test_it_is_readable(dcli: Dcli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_promises", lambda device, wrong: {})
    told = dcli("doctor")
    assert told.code == 0 and "GiB free" in told.out and "torchdiffeq" in told.out
    assert dcli("doctor", "--jsn").code == 2


def test_it_notices_a_training_that_differs(
    dcli: Dcli, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, count = doctor._train, []

    def other(*args: Any, **more: Any) -> dict[str, str]:
        count.append(1)
        return train(*args, **more) | {"model.safetensors": str(len(count))}

    monkeypatch.setattr(doctor, "_train", other)
    told = dcli("doctor")
    assert told.code == 5 and "error[DOCTOR]: doctor: R0 fails" in told.err


def test_it_notices_a_torchvision_of_another_torch(
    dcli: Dcli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    wrong: list[str] = []
    assert doctor._abi(wrong) == "does not go with torch" and len(wrong) == 1


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise doctor.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    assert doctor._extras()["torchdiffeq"] == "pip install 'diffusion-cli[ode]'"
