"""
Images: committed, tagged, removed, saved, loaded, pushed, pulled.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

from tests.engine.differential.side import BASE, Side
from tests.engine.odd_layers import entry, folder, symlink

LAYERS = 110
"""On top of the base's; docker takes at most 127 in all, the container's two among them."""


def committed(side: Side) -> None:
    """`docker commit`: running or not, with changes of the configuration; one layer on another."""
    side.started("d-work")
    changes = ("-c", "ENV A=b", "-c", 'CMD ["id"]', "-c", "USER 33", "-c", "WORKDIR /odd")
    for number, words in enumerate(((), ("--pause=false", "-a", "me", "-m", "why", *changes))):
        side.do(
            "exec", "d-work", "sh", "-c", f"echo {number} >> /odd/metadata/same; rm -f /etc/issue"
        )
        ref = f"differential/committed:{number}"
        side.docker("commit", *words, "d-work", ref, label=f"docker commit {number}")
        side.image(ref)
        side.image_size(ref)
        side.layers(ref)
    side.run(image="differential/committed:1")
    side.run("cat", "/odd/metadata/same", image="differential/committed:0")
    side.docker("commit", "d-nothing")
    side.started("d-same", image="differential/committed:1")
    side.do("commit", "d-same", "differential/nothing:1")
    side.image("differential/nothing:1")
    side.layers("differential/nothing:1")


def tags(side: Side) -> None:
    """`docker tag`, and `docker rmi` of images that are in use, have children, or are not there."""
    side.docker("tag", BASE, "differential/tagged:1")
    side.docker("tag", "differential/none:1", "differential/x:1")
    side.docker("tag", BASE, "differential/NOT VALID")
    side.do("create", "--name", "d-user", "differential/tagged:1")
    side.do("commit", "-c", "LABEL child=yes", "d-user", "differential/child:1")
    side.docker("rmi", "differential/tagged:1")
    side.docker("rmi", "differential/child:1", label="docker rmi child")
    side.docker("rmi", "differential/child:1")
    side.started("d-more", image=BASE)
    side.do("exec", "d-more", "touch", "/more")
    side.do("commit", "d-more", "differential/more:1")
    identity = side.do("image", "inspect", "-f", "{{.Id}}", "differential/more:1").strip()
    side.do("rm", "-f", "d-more")
    side.do("create", "--name", "d-holds", "differential/more:1")
    side.docker("rmi", "differential/more:1", label="docker rmi of one in use")
    side.docker("rmi", identity, label="docker rmi by id")
    side.docker("images", "-f", "reference=differential/m*", "--format", "{{.Repository}}:{{.Tag}}")
    side.docker("start", "d-holds")
    side.do("rm", "-f", "d-holds")
    side.docker("rmi", "-f", "differential/more:1", label="docker rmi -f")


def saved(side: Side) -> None:
    """What `docker save` writes comes back by `docker load`, after its images are gone."""
    side.started("d-save")
    for number in (1, 2):
        side.do("exec", "d-save", "sh", "-c", f"echo {number} > /saved; rm /etc/issue* || true")
        side.do("commit", "d-save", f"differential/saved:{number}")
    refs = ("differential/saved:1", "differential/saved:2")
    form = ("image", "inspect", "-f", "{{.Id}} {{json .RootFS.Layers}}", *refs)
    before = side.do(*form)
    archive = side.scratch / "saved.tar"
    side.do("save", "-o", str(archive), *refs)
    side.note("saved layers have the digests that they are named by", _wrong(archive))
    side.do("rm", "-f", "d-save")
    side.do("rmi", *refs)
    # docker saves and loads several images in an order that it leaves to chance.
    side.docker("load", "-i", str(archive), label="docker load", in_order=False)
    side.note("loaded as it was", [str(side.do(*form) == before)])
    side.docker("load", "-q", "-i", str(archive), label="docker load again", in_order=False)
    archive.unlink()
    side.run("cat", "/saved", image=refs[1])


def registry(side: Side) -> None:
    """Push, remove, pull by tag and by digest; what is pulled is what was pushed."""
    side.started("d-push")
    side.do("exec", "d-push", "sh", "-c", "echo pushed > /pushed; rm -r /odd/deleted")
    pushed = f"{side.repository}:pushed"
    side.do("commit", "d-push", pushed)
    side.do("rm", "-f", "d-push")
    identity = side.do("image", "inspect", "-f", "{{.Id}}", pushed)
    side.docker("push", "-q", pushed, label="docker push")
    side.docker("push", "-q", f"{side.repository}:never-made", label="docker push of nothing")
    digest = side.do("image", "inspect", "-f", "{{index .RepoDigests 0}}", pushed).strip()
    side.do("rmi", "-f", pushed)
    side.docker("pull", "-q", pushed, label="docker pull")
    same = side.do("image", "inspect", "-f", "{{.Id}}", pushed) == identity
    side.note("pulled as it was", [str(same)])
    side.run("sh", "-c", "cat /pushed; ls /odd", image=pushed)
    side.do("rmi", "-f", pushed)
    side.docker("pull", "-q", digest, label="docker pull by digest")
    side.run("cat", "/pushed", image=digest)
    side.docker(
        "pull", "-q", f"{side.repository}@sha256:{'0' * 64}", label="docker pull of nothing"
    )
    side.docker("rmi", digest, label="docker rmi by digest")


def many_layers(side: Side) -> None:
    """As many layers as docker takes, each hiding some of the one below; and one more."""
    archive = side.scratch / "many.tar"
    _stack(side, archive, "differential/many:1", LAYERS)
    side.docker("load", "-i", str(archive), label="docker load of many layers")
    archive.unlink()
    side.started("d-many", image="differential/many:1")
    side.seen("d-many", "/many")
    side.do("exec", "d-many", "sh", "-c", "cd /many; rm -r folder 100; echo x >> all; mv 99 98")
    side.diff("d-many")
    side.exported("d-many")
    side.do("commit", "d-many", "differential/many:2")
    side.layers("differential/many:2")
    side.seen_in("differential/many:2", "/many")


def _wrong(archive: Path) -> list[str]:
    """The layers in a saved archive that do not have the digest in their image's configuration."""
    wrong = []
    with tarfile.open(archive) as opened:

        def content(name: str) -> bytes:
            found = opened.extractfile(name)
            assert found is not None
            return found.read()

        for image in json.loads(content("manifest.json")):
            config = json.loads(content(image["Config"]))
            for layer, wanted in zip(image["Layers"], config["rootfs"]["diff_ids"], strict=True):
                found = f"sha256:{hashlib.sha256(content(layer)).hexdigest()}"
                wrong += [layer] if found != wanted else []
    return wrong


def _stack(side: Side, archive: Path, ref: str, count: int) -> None:
    """An archive for `docker load`: *count* layers on nothing but themselves."""
    config = json.loads(side.do("image", "inspect", BASE))[0]
    # docker does not read a layer that it has: the base's may be empty here.
    below = config["RootFS"]["Layers"]
    layers = [_layer(number) for number in range(count)]
    image = {
        "architecture": config["Architecture"],
        "os": config["Os"],
        "config": {"Cmd": ["sh"], "Env": config["Config"]["Env"]},
        "rootfs": {
            "type": "layers",
            "diff_ids": below + [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers],
        },
    }
    layers = [b""] * len(below) + layers
    names = [f"{number}.tar" for number in range(len(layers))]
    manifest = [{"Config": "c.json", "RepoTags": [ref], "Layers": names}]
    with tarfile.open(archive, "w") as out:
        files = {
            "c.json": json.dumps(image).encode(),
            "manifest.json": json.dumps(manifest).encode(),
        }
        files |= dict(zip(names, layers, strict=True))
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            out.addfile(member, io.BytesIO(data))


def _layer(number: int) -> bytes:
    """One of many layers: a file of its own, one that all have, and something of the last gone."""
    here = b"many/"
    parts = [folder(here), entry(here + b"%d" % number, data=b"%d\n" % number)]
    parts += [entry(here + b"all", data=b"all: %d\n" % number)]
    if number % 3 == 0:
        parts.append(folder(here + b"folder"))
        parts.append(entry(here + b"folder/%d" % number, data=b"x"))
        if number % 6 == 0:
            parts.append(entry(here + b"folder/.wh..wh..opq"))
    if number % 5 == 4:
        parts.append(entry(here + b".wh.%d" % (number - 1)))
    if number % 10 == 7:
        parts.append(symlink(here + b"%d" % (number - 2), b"all"))
    # docker refuses a whiteout of what the same layer has.
    if number % 10 == 9 and number % 3:
        parts.append(entry(here + b".wh.folder"))
    return b"".join(parts) + bytes(1024)


ALL = (committed, tags, saved, registry, many_layers)
