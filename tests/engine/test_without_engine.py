"""
`gear build` and `gear push` without any engine, against real registries.

docker-registry holds the images; skopeo, which shares no code with Gear, puts
them there and takes them out again.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gear_plugin.image import INDEX_NAME, MANIFEST_NAME, check_index, read_erofs
from gear_plugin.jobs import BuildFolder, Logins, Registry, RegistrySettings
from gear_plugin.names import ImageId
from tests.engine.engine import Engine
from tests.engine.loginregistry import PASSWORD, USER, LoginRegistry
from tests.engine.registry import Registry as TlsRegistry
from tests.unit.image import rawtar
from tests.unit.image.tars import info, tar
from tests.unit.jobs import layouts, saves
from tests.unit.jobs.saves import CONFIG, file

LAYERS = [
    tar(file("etc/a", b"same", mode=0o4755), file("etc/big", bytes(range(256)) * 9000)),
    tar(file("etc/b", b"same"), file(".wh.nothing", b""), info("x", linkname="y", type=b"2")),
]

Serve = Callable[..., LoginRegistry]


@dataclass
class Gear:
    """The `gear` command of somebody who has no engine."""

    folder: Path
    environ: dict[str, str] = field(default_factory=dict)

    def __call__(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*words),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=self.env,
        )
        assert done.returncode == code, done.stderr
        return done

    def command(self, *words: str) -> list[str]:
        places = ["--root", f"{self.folder}/root", "--store", f"{self.folder}/store"]
        places += ["--catalog", f"sqlite:///{self.folder}/catalog.sqlite"]
        return [sys.executable, "-m", "gear_plugin", *places, *words]

    @property
    def env(self) -> dict[str, str]:
        nobody = {"DOCKER_HOST": "unix:///nowhere/docker.sock", "DOCKER_CONFIG": f"{self.folder}"}
        return {**os.environ, **nobody, **self.environ}

    def login(self, config: dict[str, Any]) -> None:
        """Write docker's config.json."""
        (self.folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def gear(tmp_path: Path) -> Gear:
    return Gear(tmp_path)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start a registry."""
    started: list[LoginRegistry] = []

    def start(auth: str | None = None) -> LoginRegistry:
        registry = LoginRegistry(tmp_path / f"registry-{len(started)}", auth)
        started.append(registry)
        registry.start()
        return registry

    yield start
    for registry in started:
        registry.stop()


def skopeo(*words: str) -> str:
    done = subprocess.run(["skopeo", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


CREDS = f"{USER}:{PASSWORD}"
AUTH = {"auth": base64.b64encode(CREDS.encode()).decode()}


def put(folder: Path, ref: str, *words: str, creds: str = "") -> None:
    """Have the image LAYERS in a registry."""
    archive = folder / "original.tar"
    archive.write_bytes(saves.saved_by_20("app:1", LAYERS))
    login = ["--dest-creds", creds] if creds else []
    copy = ("copy", "-q", "--dest-tls-verify=false", *login, *words)
    skopeo(*copy, f"docker-archive:{archive}", f"docker://{ref}")


def take(folder: Path, ref: str, creds: str = "") -> tuple[dict[str, Any], bytes]:
    """What is in a registry under *ref*: the configuration, and the only layer as a plain tar."""
    out = folder / "taken"
    login = ["--src-creds", creds] if creds else []
    skopeo("copy", "-q", "--src-tls-verify=false", *login, f"docker://{ref}", f"dir:{out}")
    manifest = json.loads((out / "manifest.json").read_bytes())
    (layer,) = manifest["layers"]
    blobs = [(out / part["digest"].removeprefix("sha256:")) for part in (manifest["config"], layer)]
    return json.loads(blobs[0].read_bytes()), gzip.decompress(blobs[1].read_bytes())


def build(gear: Gear, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gear("build", "--json", *words).stdout)
    return found


def test_from_a_registry_to_a_registry(gear: Gear, serve: Serve) -> None:
    """
    Built and pushed with nothing but Gear, taken out by skopeo: one sound layer, as it was built.
    """
    registry = serve()
    name = f"{registry.address}/team/app"
    put(gear.folder, f"{name}:1")
    built = build(gear, "--from", "registry", f"{name}:1")
    gear("push", f"{name}-gear:1")
    config, layer = take(gear.folder, f"{name}-gear:1")
    assert layouts.digest(layer) == built["layer"]
    assert config["config"] == CONFIG["config"]
    found = saves.unpack(layer)
    checked = check_index(found[INDEX_NAME], found[MANIFEST_NAME])
    assert checked.manifest.index_digest.hex == built["index"]
    again = gear("push", f"{name}-gear:1")
    assert "layer already exists" in again.stderr
    assert "0 of 2 objects were new" in again.stdout


def test_the_index_layer_comes_back_as_it_was_built(gear: Gear, serve: Serve) -> None:
    """
    For all who look into a Gear image without an engine.
    """
    registry = serve()
    name = f"{registry.address}/team/app"
    put(gear.folder, f"{name}:1")
    build(gear, "--from", "registry", f"{name}:1")
    gear("push", f"{name}-gear:1")
    settings = RegistrySettings(Logins(gear.folder / "config.json"), gear.folder / "certs.d")
    client = Registry(settings)
    client.fetch_index_layer(ImageId.parse(f"{name}-gear:1"), gear.folder / "index.tar")
    client.close()
    made = BuildFolder.of(gear.folder / "root", ImageId.parse(f"{name}:1"))
    assert (gear.folder / "index.tar").read_bytes() == made.index_tar.read_bytes()


@pytest.mark.parametrize("auth", ["basic", "token"])
def test_a_login_is_docker_s(gear: Gear, serve: Serve, auth: str) -> None:
    """
    From config.json, for pulling and for pushing; without one, or with a wrong one, one line.
    """
    registry = serve(auth)
    name = f"{registry.address}/team/app"
    put(gear.folder, f"{name}:1", creds=CREDS)
    denied = gear("build", "--from", "registry", f"{name}:1", code=9)
    assert f"run `docker login {registry.address}`" in denied.stderr
    wrong = {"auth": base64.b64encode(f"{USER}:wrong".encode()).decode()}
    gear.login({"auths": {registry.address: wrong}})
    denied = gear("build", "--from", "registry", f"{name}:1", code=9)
    assert len(denied.stderr.splitlines()) == 2  # the step, and the error
    assert not list((gear.folder / "root").glob("build/[!.]*"))
    gear.login({"auths": {registry.address: AUTH}})
    built = build(gear, "--from", "registry", f"{name}:1")
    gear.login({})
    gear("push", f"{name}-gear:1", code=9)
    gear.login({"auths": {registry.address: AUTH}})
    gear("push", f"{name}-gear:1")
    _, layer = take(gear.folder, f"{name}-gear:1", creds=CREDS)
    assert layouts.digest(layer) == built["layer"]


def test_a_credential_helper_is_asked(gear: Gear, serve: Serve) -> None:
    """
    The program that docker would run, for the registry that it is for.
    """
    registry = serve("basic")
    name = f"{registry.address}/team/app"
    put(gear.folder, f"{name}:1", creds=CREDS)
    helper = gear.folder / "docker-credential-test"
    helper.write_text(
        "#!/bin/sh\n"
        f'read -r host; test "$1 $host" = "get {registry.address}" || exit 7\n'
        f"""echo '{{"ServerURL": "x", "Username": "{USER}", "Secret": "{PASSWORD}"}}'\n"""
    )
    helper.chmod(0o755)
    gear.environ["PATH"] = f"{gear.folder}:{os.environ['PATH']}"
    gear.login({"credHelpers": {registry.address: "test"}, "auths": {registry.address: {}}})
    build(gear, "--from", "registry", f"{name}:1")
    gear("push", f"{name}-gear:1")
    helper.write_text("#!/bin/sh\necho the key ring is locked >&2; exit 1\n")
    failed = gear("push", f"{name}-gear:1", code=2)
    assert "docker-credential-test gave no login" in failed.stderr


def test_an_identity_token_is_exchanged(gear: Gear, serve: Serve) -> None:
    """
    What `docker login` leaves when it goes through a browser.
    """
    registry = serve("token")
    name = f"{registry.address}/team/app"
    put(gear.folder, f"{name}:1", creds=CREDS)
    gear.login({"auths": {registry.address: {"identitytoken": PASSWORD}}})
    build(gear, "--from", "registry", f"{name}:1")


def test_every_form_that_skopeo_writes_gives_the_same_index(gear: Gear, serve: Serve) -> None:
    """
    Docker's and OCI's formats, plain, gzip and zstd; archive, folder and registry.

    Not the same image id: what OCI has no word for (Healthcheck, Shell, OnBuild) skopeo leaves out.
    """
    original = gear.folder / "original.tar"
    original.write_bytes(saves.saved_by_20("app:1", LAYERS))
    source = f"docker-archive:{original}"
    places = [str(original)]
    marks = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
    for format_, compression in (("oci", "zstd"), ("oci", "gzip"), ("v2s2", "gzip")):
        registry = serve()  # each its own: skopeo would use again what it knows to be there
        words = ("copy", "-q", "--format", format_, "--dest-compress-format", compression)
        ref = f"{registry.address}/app:1"
        skopeo(*words, "--dest-tls-verify=false", source, f"docker://{ref}")
        blobs = [path.read_bytes() for path in registry.storage.rglob("data")]
        assert any(blob.startswith(marks[compression]) for blob in blobs)
        places.append(f"docker://{ref}")
    for transport in ("oci-archive", "oci", "docker-archive"):
        target = gear.folder / transport
        skopeo("copy", "-q", source, f"{transport}:{target}:some/name:7")
        places.append(str(target))
    indexes = {place: build(gear, "--from", place, "app:1")["index"] for place in places}
    assert len(places) == 7
    assert len(set(indexes.values())) == 1, indexes


def test_a_platform_is_chosen_in_a_registry(gear: Gear, serve: Serve) -> None:
    """
    From a real index, copied there by skopeo.
    """
    registry = serve()
    images = [
        layouts.Image("app:1", LAYERS, CONFIG | {"architecture": name}, "gzip")
        for name in ("amd64", "arm64")
    ]
    nested = layouts.index_bytes(*(image.entry(named=False) for image in images))
    annotations = {"org.opencontainers.image.ref.name": "app:1"}
    top = layouts.index_bytes(layouts.descriptor(nested, layouts.INDEX, annotations=annotations))
    files = layouts.layout(*images, top=top) | {layouts.path_of(nested): nested}
    folder = layouts.as_folder(files, gear.folder / "layout")
    ref = f"{registry.address}/multi:1"
    skopeo(
        "copy", "-q", "--all", "--dest-tls-verify=false", f"oci:{folder}:app:1", f"docker://{ref}"
    )
    words = ("--from", "registry", ref)
    assert build(gear, "--platform", "linux/arm64", *words)["platform"] == "linux/arm64"
    missing = gear("build", "--platform", "linux/s390x", *words, code=3)
    assert "it has: linux/amd64, linux/arm64" in missing.stderr


def test_a_blob_that_went_bad_in_the_registry_is_refused(gear: Gear, serve: Serve) -> None:
    """
    A flipped bit on the registry's disk: found by the digest, nothing is left.
    """
    registry = serve()
    ref = f"{registry.address}/team/app:1"
    put(gear.folder, ref)
    blobs = sorted(registry.storage.rglob("data"), key=lambda path: path.stat().st_size)
    data = bytearray(blobs[-1].read_bytes())
    data[len(data) // 2] ^= 1
    blobs[-1].write_bytes(data)
    failed = gear("build", "--from", "registry", ref, code=5)
    assert failed.stderr.splitlines()[-1].startswith("gear: the ")
    assert "Traceback" not in failed.stderr
    assert not list((gear.folder / "root").glob("build/[!.]*"))
    assert not list((gear.folder / "root").glob("build/.tmp*"))


def test_images_and_registries_that_are_not_there(gear: Gear, serve: Serve) -> None:
    """
    Each with its own exit code.
    """
    registry = serve()
    unknown = gear("build", "--from", "registry", f"{registry.address}/nothing:1", code=3)
    assert f"the registry {registry.address} has no" in unknown.stderr
    put(gear.folder, f"{registry.address}/team/app:1")
    build(gear, "--from", "registry", f"{registry.address}/team/app:1")
    registry.stop()
    down = gear("build", "--from", "registry", f"{registry.address}/team/app:1", code=7)
    assert f"no registry answers at {registry.address}" in down.stderr
    gear("push", f"{registry.address}/team/app-gear:1", code=7)


def test_an_engine_takes_what_was_made_without_one(
    gear: Gear, engine_a: Engine, registry: TlsRegistry
) -> None:
    """
    It loads the archive, and pulls what was pushed: the same image.
    """
    name = f"{registry.address}/without/app"
    archive, target = gear.folder / "saved.tar", gear.folder / "gear.tar"
    archive.write_bytes(saves.saved_by_20(f"{name}:1", LAYERS))
    built = build(gear, "--from", str(archive), "-o", str(target), f"{name}:1")
    gear("push", f"{name}-gear:1")
    for get in (("load", "-i", str(target)), ("pull", f"{name}-gear:1")):
        engine_a.docker(*get)
        text = engine_a.docker("image", "inspect", f"{name}-gear:1").stdout
        (found,) = json.loads(text)
        assert found["Id"] == built["gear_image_id"]
        assert found["RootFS"]["Layers"] == [built["layer"]]
        assert found["Config"]["Labels"] == CONFIG["config"]["Labels"]
        engine_a.docker("rmi", f"{name}-gear:1")


def test_a_hard_link_s_header_counts_as_in_docker(gear: Gear, engine_a: Engine) -> None:
    """
    Owner, mode, time and xattrs of the last name, on the inode that all names share.
    """
    capability = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
    xattrs = {b"SCHILY.xattr.security.capability": capability, b"SCHILY.xattr.user.a": b"1"}
    again = {b"SCHILY.xattr.user.b": b"2"}
    layer = b"".join(
        [
            rawtar.entry(b"a", data=b"data", mode=0o4755, pax=xattrs),
            rawtar.entry(
                b"b", rawtar.LINK, link=b"a", mode=0o600, uid=3, gid=4, mtime=7, pax=again
            ),
            rawtar.entry(b"s", rawtar.SYMLINK, link=b"x", mode=0o777),
            rawtar.entry(b"t", rawtar.LINK, link=b"s", mode=0o600, uid=5, mtime=7),
            rawtar.END,
        ]
    )
    archive = gear.folder / "saved.tar"
    archive.write_bytes(saves.saved_by_20("links:1", [layer]))
    engine_a.docker("load", "-i", str(archive))
    form = "{{.GraphDriver.Data.UpperDir}}"
    root = Path(engine_a.docker("image", "inspect", "links:1", "-f", form).stdout.strip())
    build(gear, "--from", str(archive), "links:1")
    made = BuildFolder.of(gear.folder / "root", ImageId.parse("links:1"))
    tree = read_erofs(saves.unpack(made.index_tar.read_bytes())[INDEX_NAME])
    for name in ("a", "b", "s", "t"):
        node, status = tree.lookup(name.encode()), (root / name).lstat()
        assert node is not None
        assert (node.uid, node.gid, node.mtime_ns) == (
            *(status.st_uid, status.st_gid),
            status.st_mtime_ns,
        )
        if name in "ab":
            assert node.mode == stat.S_IMODE(status.st_mode)
        names = os.listxattr(root / name, follow_symlinks=False)
        assert set(node.xattrs) == {os.fsencode(found) for found in names}
    engine_a.docker("rmi", "links:1")
