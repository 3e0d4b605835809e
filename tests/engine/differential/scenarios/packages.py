"""
Package managers in containers: the programs that use most of a filesystem.
"""

from __future__ import annotations

import io
import zipfile

from tests.engine.differential.side import Side

_DEB = """\
set -e
cd /tmp && mkdir -p p/DEBIAN p/usr/share/doc/gear-test p/etc/gear-test p/usr/bin
printf 'Package: gear-test\\nVersion: %s\\nArchitecture: all\\n' $1 > p/DEBIAN/control
printf 'Maintainer: x <x@example.org>\\nDescription: a test\\n' >> p/DEBIAN/control
printf '/etc/gear-test/conf\\n' > p/DEBIAN/conffiles
printf '#!/bin/sh\\necho "$1 $2"; chmod 2755 /usr/share/doc/gear-test\\n' > p/DEBIAN/postinst
chmod 755 p/DEBIAN/postinst
echo "version $1" > p/etc/gear-test/conf
echo "$1" > p/usr/share/doc/gear-test/text
ln -f p/usr/share/doc/gear-test/text p/usr/share/doc/gear-test/text-$1
ln -sf ../share/doc/gear-test/text p/usr/bin/gear-test
dpkg-deb --root-owner-group --build p gear-test-$1.deb
rm -r p
"""
_LOGS = "rm -f /var/log/dpkg.log /var/log/alternatives.log /var/cache/ldconfig/aux-cache"


def dpkg(side: Side) -> None:
    """A package installed, upgraded, and removed; one of the image's own removed."""
    side.started("d-dpkg")
    for version in ("1", "2"):
        side.do("exec", "d-dpkg", "sh", "-c", _DEB, "sh", version)
    for words in (
        ("dpkg", "-i", "/tmp/gear-test-1.deb"),
        ("dpkg", "-i", "/tmp/gear-test-2.deb"),
        ("dpkg", "-r", "gear-test"),
        ("dpkg", "-i", "/tmp/gear-test-1.deb"),
        ("dpkg", "--force-depends", "--purge", "libcap2-bin"),
        ("dpkg", "--verify"),
        ("sh", "-c", f"rm /tmp/*.deb; {_LOGS}"),
    ):
        side.docker("exec", "d-dpkg", *words)
        side.diff("d-dpkg")
    side.seen("d-dpkg", "/var/lib/dpkg", "/etc/gear-test", "/usr/share/doc/gear-test")
    side.do("commit", "d-dpkg", "differential/dpkg:1")
    # Not the layer: dpkg renames new folders into place, see docs/fidelity.md.
    side.seen_in("differential/dpkg:1", "/var/lib/dpkg", "/etc/gear-test", "/usr/share/doc")
    side.run("gear-test", image="differential/dpkg:1")
    side.run("dpkg", "-s", "gear-test", image="differential/dpkg:1")


def pip(side: Side) -> None:
    """A wheel installed over what the image's own pip knows; one of the image's removed."""
    side.started("d-pip")
    for version in ("1.0", "2.0"):
        wheel = side.scratch / f"gear_test-{version}-py3-none-any.whl"
        wheel.write_bytes(_wheel(version))
        side.do("cp", str(wheel), "d-pip:/tmp/")
    pip = ("exec", "d-pip", "/opt/venv/bin/pip", "-q", "--no-input", "--no-cache-dir")
    install = (*pip, "install", "--no-index", "--no-compile", "--disable-pip-version-check")
    for words in (
        (*install, "/tmp/gear_test-1.0-py3-none-any.whl"),
        (*install, "/tmp/gear_test-2.0-py3-none-any.whl"),
        (*pip, "uninstall", "-y", "flask"),
        ("exec", "d-pip", "/opt/venv/bin/python", "-c", "import gear_test; print(gear_test.V)"),
    ):
        side.docker(*words)
        side.diff("d-pip")
    side.do("commit", "d-pip", "differential/pip:1")
    side.layers("differential/pip:1")
    side.run("/opt/venv/bin/python", "-c", "import flask", image="differential/pip:1")


def _wheel(version: str) -> bytes:
    out = io.BytesIO()
    info = f"gear_test-{version}.dist-info"
    files = {
        "gear_test/__init__.py": f"V = {version!r}\n",
        f"gear_test/only_{version[0]}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: gear-test\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\ngear-test = gear_test:main\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(out, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return out.getvalue()


ALL = (dpkg, pip)
