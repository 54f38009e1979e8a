"""The other packages: each is installed into an environment of its own.

An environment sees the packages of the one that runs this, so that torch is there
once, and is the same for all. What does not install is told, not worked around.

    python scripts/bench/peers.py            # install all, or say why not
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / ".bench"  # git ignores it


@dataclass(frozen=True)
class Peer:
    """A package that does some of what dcli does.

    Args:
        name: As pip knows it.
        module: What is imported.
        bare: Install it without what it asks for, and these instead: its own list
            names builds that no longer compile.
    """

    name: str
    module: str
    bare: tuple[str, ...] = ()

    @property
    def home(self) -> Path:
        """Its environment."""
        return HOME / self.name

    @property
    def python(self) -> str:
        """The interpreter that can import it."""
        return str(self.home / "bin" / "python")

    @property
    def note(self) -> Path:
        """What installing it came to."""
        return self.home / "installed.json"


PEERS = {
    peer.name: peer
    for peer in (
        Peer("diffusers", "diffusers"),
        Peer("denoising-diffusion-pytorch", "denoising_diffusion_pytorch"),
        Peer("azula", "azula"),
        Peer("smalldiffusion", "smalldiffusion", ("accelerate", "einops")),
        Peer("torchcfm", "torchcfm"),
        Peer("flow_matching", "flow_matching"),
        # its package file imports evaluation code; `sampling` alone needs these two
        Peer("k-diffusion", "k_diffusion", ("torchsde", "torchdiffeq")),
    )
}


def install(peer: Peer) -> dict[str, str]:
    """Its version, or the last line of why there is none."""
    if peer.note.exists():
        return dict(json.loads(peer.note.read_text()))
    told = f"installing {peer.name} into {peer.home}, which can take minutes"
    print(told, file=sys.stderr, flush=True)
    venv.create(peer.home, with_pip=True, clear=True)
    own = Path(_ask(peer, "import sysconfig; print(sysconfig.get_path('purelib'))"))
    (own / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    try:
        if peer.bare:
            _pip(peer, "--no-deps", peer.name)
            _pip(peer, *peer.bare)
        else:
            _pip(peer, peer.name)
        version = f"import importlib.metadata as m; print(m.version('{peer.name}'))"
        found = {"version": _ask(peer, version)}
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or error.stdout or "no reason given").strip().splitlines()
        found = {"fault": lines[-1]}
    peer.note.write_text(json.dumps(found))
    return found


def _pip(peer: Peer, *what: str) -> None:
    command = [peer.python, "-m", "pip", "install", "--quiet", *what]
    subprocess.run(command, check=True, text=True, capture_output=True)


def _ask(peer: Peer, code: str) -> str:
    command = [peer.python, "-c", code]
    done = subprocess.run(command, check=True, text=True, capture_output=True)
    return done.stdout.strip()


def main() -> None:
    """Install all of them and say what came of it."""
    for peer in PEERS.values():
        print(peer.name, *install(peer).values(), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
