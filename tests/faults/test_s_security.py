"""Section 3: what a stranger's file must not do."""

from __future__ import annotations

import json
import os
import pickle
import stat
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from harness import SAMPLE, TRAIN, Place, controls, place, says, trained
from test_b_reading import edit

__all__ = ["controls", "place"]  # fixtures
pytestmark = pytest.mark.fault

STEP = "run/checkpoints/step_00000012"
TOUCH = "touch exploded"


def in_config(role: str, node: Any) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        manifest["config"][role] = node

    return change


def target(name: str, *args: str) -> dict[str, Any]:
    return {"_target_": name, "_args_": list(args), "name": "mlp", "width": 16}


def renamed(manifest: dict[str, Any]) -> None:
    manifest["files"]["../../../x.safetensors"] = {"size": 0, "sha256": ""}


class Row(NamedTuple):
    """A checkpoint that a stranger wrote, hashes and all, and what is said of it."""

    name: str
    change: Callable[[dict[str, Any]], None]
    says: str


ROWS = [
    Row("S2-os", in_config("network", target("os.system", TOUCH)), "network"),
    Row("S2-posix", in_config("network", target("posix.system", TOUCH)), ""),
    Row("S2-logging", in_config("sampler", target("logging.os.system", TOUCH)), ""),
    Row("S2-open", in_config("process", target("builtins.open", "exploded", "w")), ""),
    Row("S2-nested", in_config("optimizer", {"lr": target("os.x")}), ""),
    Row("S3", in_config("network", {"name": "mine"}), "`mine`, which is not"),
    Row("S5-deep", in_config("dataset", {"name": "../../toy2d"}), "which is not"),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_strangers_checkpoint(row: Row, place: Place) -> None:
    place.put(trained())
    edit(place.work / STEP, row.change)
    told = place.dcli(*SAMPLE, f"ckpt={STEP}")
    if row.name == "S2-nested":  # sampling builds no optimiser
        assert told.code == 0
    else:
        assert told.code == 4, told.err
        says(told, row.says)
    assert not list(place.root.rglob("exploded"))


def test_a_checkpoint_imports_nothing(place: Place) -> None:
    """S3: the plug-ins that it names stay where they are."""
    place.put(trained())
    place.file("evil.py", "open('exploded', 'w')")
    edit(
        place.work / STEP,
        lambda manifest: manifest["config"].update(plugins=["evil.py"]),
    )
    assert place.dcli(*SAMPLE, f"ckpt={STEP}").code in (0, 4)
    assert not (place.work / "exploded").exists()


def test_secrets_stay_in_the_environment(place: Place) -> None:
    """S4."""
    secrets = {
        name: f"hunter-{name}" for name in ("WANDB_API_KEY", "HF_TOKEN", "MY_SECRET")
    }
    told = place.dcli(*TRAIN, **secrets)
    assert told.code == 0
    doctor = place.dcli("doctor", "--json", **secrets)
    assert doctor.code == 0 and json.loads(doctor.out)
    every = [p.read_bytes() for p in place.root.rglob("*") if p.is_file()]
    assert every and not any(b"hunter-" in text for text in every)


def test_a_run_is_as_private_as_its_user_wants(place: Place) -> None:
    """S11."""
    assert place.dcli(*TRAIN, before=lambda: os.umask(0o077)).code == 0
    open_ = [
        p
        for p in (place.run, *place.run.rglob("*"))
        if stat.S_IMODE(p.stat().st_mode) & 0o077
    ]
    assert open_ == []


def no_socket_may(act: str) -> Callable[[], None]:
    """In the child: sockets that do it raise."""

    def arrange() -> None:
        import socket

        def refuse(*args: Any) -> None:
            raise AssertionError(act)

        setattr(socket.socket, act, refuse)

    return arrange


def test_no_port_is_opened(place: Place) -> None:
    """S12."""

    assert place.dcli(*TRAIN, before=no_socket_may("listen")).code == 0


def test_a_distributed_checkpoint_is_not_unpickled(place: Place) -> None:
    """S10: the `.metadata` of torch's distributed checkpoints is a pickle."""
    folder = place.work / "theirs"
    place.file("theirs/__0_0.distcp", "")
    (folder / ".metadata").write_bytes(pickle.dumps(Bomb()))
    for name in ("theirs", "theirs/.metadata"):
        assert place.dcli(*SAMPLE, f"ckpt={name}").code == 4
    assert not (place.work / "exploded").exists()


class Bomb:
    """Touches a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, (TOUCH,)


def test_nothing_connects_while_it_is_imported(place: Place) -> None:
    """S8."""

    assert place.dcli(*TRAIN, before=no_socket_may("connect")).code == 0


def test_every_download_is_hashed() -> None:
    """S9: what we name ourselves is https, and all has a hash."""
    from diffusion_cli.metrics.inception import WEIGHTS

    assert (WEIGHTS.kind, len(WEIGHTS.hash)) == ("sha256", 64) and WEIGHTS.size
    assert all(url.startswith("https://") for url in WEIGHTS.urls)
