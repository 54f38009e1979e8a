"""Downloads: whole and right, or an error that says what to put where."""

import gzip
import hashlib
import os
import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torchvision

from diffusion_cli.datasets import datasets, download
from diffusion_cli.datasets.download import Remote, fetch
from diffusion_cli.errors import DataError, EnvironmentFault, StorageError

BODY = bytes(range(256)) * 4000  # a megabyte
MD5 = hashlib.md5(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves BODY, or `files`; `drops` replies end in their middle."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.drops, self.ranges = 0, True
        self.starts: list[int] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        if server.files and self.path[1:] not in server.files:
            return self.send_error(404)
        body = server.files.get(self.path[1:], BODY)
        wanted = self.headers.get("Range", "bytes=0-").removeprefix("bytes=")
        start = int(wanted.rstrip("-")) if server.ranges else 0
        server.starts.append(start)
        if start >= len(body):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        stop = len(body)
        if server.drops > 0:
            server.drops -= 1
            stop = start + (len(body) - start) // 2
        self.wfile.write(body[start:stop])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


def files(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.endswith(".lock"))


def refused() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/"


def test_a_file_is_fetched_once(server: Server, tmp_path: Path) -> None:
    remote = Remote("x.bin", (server.url + "x.bin",), MD5)
    for _ in range(2):
        assert fetch(remote, tmp_path / "new").read_bytes() == BODY
    assert server.starts == [0] and files(tmp_path / "new") == ["x.bin"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_continued(
    ranges: bool, server: Server, tmp_path: Path
) -> None:
    """Fault F14."""
    server.drops, server.ranges = 2, ranges
    path = fetch(Remote("x.bin", (server.url,), MD5), tmp_path)
    assert path.read_bytes() == BODY and files(tmp_path) == ["x.bin"]
    if ranges:
        assert server.starts == [0, len(BODY) // 2, len(BODY) * 3 // 4]


@pytest.mark.parametrize("left", [BODY[:1000], BODY, BODY + b"more"])
def test_what_a_killed_process_left_is_continued(
    left: bytes, server: Server, tmp_path: Path
) -> None:
    """Fault F14."""
    (tmp_path / ".x.bin.part").write_bytes(left)
    path = fetch(Remote("x.bin", (server.url,), MD5), tmp_path)
    assert path.read_bytes() == BODY and files(tmp_path) == ["x.bin"]


def test_another_mirror_helps(server: Server, tmp_path: Path) -> None:
    """Fault F14."""
    mirrors = (refused() + "x.bin", server.url + "x.bin")
    assert fetch(Remote("x.bin", mirrors, MD5), tmp_path).read_bytes() == BODY


def test_a_wrong_hash_is_refused_and_forgotten(server: Server, tmp_path: Path) -> None:
    """Fault F14."""
    with pytest.raises(DataError, match=f"md5 {MD5}, expected md5 0000") as caught:
        fetch(Remote("x.bin", (server.url,), "0" * 32), tmp_path)
    assert caught.value.exit_code == 3 and files(tmp_path) == []


def test_a_wrong_file_of_the_user_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"other")
    with pytest.raises(DataError, match="expected md5") as caught:
        fetch(Remote("x.bin", (refused(),), MD5), tmp_path)
    assert caught.value.hint == f"delete {tmp_path / 'x.bin'}"
    assert files(tmp_path) == ["x.bin"]


def test_offline_is_exit_5_and_says_what_to_put_where(tmp_path: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(EnvironmentFault, match="cannot download http") as caught:
        fetch(Remote("x.bin", (refused(), refused()), MD5), tmp_path)
    assert time.monotonic() - begin < 20
    assert caught.value.exit_code == 5
    assert caught.value.hint == f"put x.bin (md5 {MD5}) into {tmp_path}"
    assert files(tmp_path) == []


def test_offline_all_missing_files_of_a_set_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one by one; what is there, packed or not, is not asked for."""
    source = torchvision.datasets.FashionMNIST
    names = [name for name, _ in source.resources]
    monkeypatch.setattr(source, "mirrors", [refused()])
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    raw = tmp_path / "data/FashionMNIST/raw"
    raw.mkdir(parents=True)
    (raw / names[0].removesuffix(".gz")).write_bytes(b"")
    (raw / names[2]).write_bytes(b"")
    folders = {"root": str(tmp_path / "data"), "cache": str(tmp_path / "cache")}
    with pytest.raises(EnvironmentFault) as caught:
        datasets["fashion_mnist"](**folders).prepare()
    told = caught.value.hint
    assert [name in told for name in names] == [False, True, False, True]
    assert told.startswith("put ") and told.endswith(f") into {raw}")


@pytest.mark.parametrize("mirrors", [1, 2])
def test_a_network_that_never_answers_is_offline(
    mirrors: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PATIENCE", 1.0)
    begin = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(EnvironmentFault):
            fetch(Remote("x.bin", (url,) * mirrors, MD5), tmp_path)
    assert time.monotonic() - begin < 5


def test_a_name_look_up_that_hangs_is_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PATIENCE", 1.0)
    monkeypatch.setattr(download, "urlopen", lambda *a, **k: time.sleep(30))
    begin = time.monotonic()
    with pytest.raises(EnvironmentFault, match="no answer in 1 s"):
        fetch(Remote("x.bin", ("http://nowhere.invalid/",), MD5), tmp_path)
    assert time.monotonic() - begin < 5


def test_a_folder_that_cannot_be_made_is_exit_6(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(StorageError) as caught:
        fetch(Remote("x.bin", (refused(),), MD5), tmp_path / "data")
    assert "dataset.root=" in caught.value.hint


def test_a_full_disk_is_exit_6_at_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = OSError(28, "No space left on device")
    monkeypatch.setattr(
        download.failpoints, "hit", lambda name: (_ for _ in ()).throw(fault)
    )
    with pytest.raises(StorageError, match="no space left on device"):
        fetch(Remote("x.bin", (server.url,), MD5), tmp_path)
    assert server.starts == [0]


def _fetch(url: str, folder: str) -> int:
    return len(fetch(Remote("x.bin", (url,), MD5), Path(folder)).read_bytes())


def test_many_processes_download_once(server: Server, tmp_path: Path) -> None:
    """Fault F15."""
    with get_context("fork").Pool(4) as pool:
        sizes = pool.starmap(_fetch, [(server.url, str(tmp_path))] * 4, chunksize=1)
    assert sizes == [len(BODY)] * 4
    assert server.starts == [0] and files(tmp_path) == ["x.bin"]


@pytest.fixture
def tiny(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Fashion-MNIST with six pictures, served from here."""
    source, resources = torchvision.datasets.FashionMNIST, []
    for part, count in (("train", 6), ("t10k", 2)):
        pixels = np.arange(count * 784, dtype=np.uint8)
        header = np.array([0x803, count, 28, 28], ">i4").tobytes()
        labels = np.array([0x801, count], ">i4").tobytes() + bytes(range(count))
        for kind, body in (
            ("images-idx3", header + pixels.tobytes()),
            ("labels-idx1", labels),
        ):
            name, packed = f"{part}-{kind}-ubyte.gz", gzip.compress(body)
            server.files[name] = packed
            resources.append((name, hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(source, "mirrors", [server.url])
    monkeypatch.setattr(source, "resources", resources)
    return server


def test_a_set_is_downloaded_and_parsed_once(tiny: Server, tmp_path: Path) -> None:
    for root in ("data", "gone"):  # the second time, the cache is enough
        folders = {"root": str(tmp_path / root), "cache": str(tmp_path / "cache")}
        data = datasets["fashion_mnist"](**folders)
        data.prepare()
        assert len(data) == 6
    assert tiny.starts == [0] * 4 and not (tmp_path / "gone").exists()
    assert (
        sum("gz" not in name for name in files(tmp_path / "data/FashionMNIST/raw")) == 4
    )


def test_a_truncated_file_of_a_set_is_exit_3(tiny: Server, tmp_path: Path) -> None:
    """Fault F14."""
    folders = {"root": str(tmp_path / "data"), "cache": str(tmp_path / "cache")}
    datasets["fashion_mnist"](**folders).prepare()
    raw = tmp_path / "data/FashionMNIST/raw/t10k-images-idx3-ubyte"
    raw.write_bytes(raw.read_bytes()[:-5])
    with pytest.raises(DataError, match="the files of FashionMNIST are damaged"):
        datasets["fashion_mnist"](**folders, split="test").prepare()


def test_a_tampered_cifar_batch_is_never_unpickled(tmp_path: Path) -> None:
    """Fault F18."""
    source = torchvision.datasets.CIFAR10
    folder = tmp_path / source.base_folder
    folder.mkdir()
    marker = tmp_path / "executed"
    bomb = f"cos\nsystem\n(S'touch {marker}'\ntR.".encode()
    names = [name for name, _ in source.train_list + source.test_list]
    for name in [*names, source.meta["filename"]]:
        (folder / name).write_bytes(bomb)
    with pytest.raises(DataError, match="damaged"):
        datasets["cifar10"](root=str(tmp_path), cache=str(tmp_path / "cache")).prepare()
    assert not marker.exists()
