"""
Real images, built on a real engine from Debian packages and PyPI wheels.

No image registry is needed: mmdebstrap makes the base, `docker build` with the
classic builder the rest, without network inside containers.  Each image is
kept as a `docker save` tar under build/images, named by the hash of its
recipe, so a later run only loads it.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.engine.engine import Engine

CACHE = Path(__file__).parents[2] / "build" / "images"
SUITE = "bookworm"
PYTHON = "3.11"

BASE_PACKAGES = ("python3", "python3-venv", "libcap2-bin", "ca-certificates")
PLUGIN_PACKAGES = ("python3", "python3-venv", "libfuse2", "ca-certificates")

APP = """\
import flask
app = flask.Flask("demo")
VERSION = "{version}"
@app.get("/")
def hello(): return "hello from " + VERSION
if __name__ == "__main__":
    import os
    app.run("127.0.0.1", int(os.environ["PORT"]))
"""

VENV = """\
COPY wheels /wheels
RUN python3 -m venv /opt/venv \\
 && /opt/venv/bin/pip install -q --no-index --find-links /wheels {packages}
RUN rm -r /wheels
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
"""

WEB = (
    """\
FROM {base}
"""
    + VENV.format(packages="flask")
    + """\
WORKDIR /srv/app
COPY app.py .
ENV PORT=8000 GREETING="two words"
EXPOSE 8000/tcp
VOLUME /data
LABEL org.example.note="quoted \\"words\\"" org.example.empty=""
HEALTHCHECK --interval=30s --timeout=3s CMD python3 -c 'import app'
STOPSIGNAL SIGINT
USER www-data
CMD ["python3", "app.py"]
"""
)

WEB2 = """\
FROM {web}
COPY app.py .
"""

# Everything that a layer can do to the layers below it, and odd files.
SCIPY = (
    """\
FROM {base}
"""
    + VENV.format(packages="numpy scipy pandas")
    + """\
RUN cd /usr/share && rm -r doc locale && mkdir locale && echo x > locale/x
RUN chmod 700 /usr/lib/python3 && chown 33:33 /usr/share/perl5 \\
 && mv /usr/share/zoneinfo /usr/share/moved || true
RUN mkdir -p /odd/empty && cd /odd && cp /bin/cat setuid && chmod 4755 setuid \\
 && cp /bin/cat capable && setcap cap_net_raw+ep capable \\
 && ln setuid hard1 && ln setuid /usr/local/hard2 && ln -s missing dangling && ln -s / root \\
 && mkfifo fifo && mknod null c 1 3 && mknod disk b 7 0 && touch zero \\
 && chmod 1777 empty && touch -d '1960-01-01' old && touch -d '2040-01-01T00:00:00.5' new \\
 && python3 -c 'import os; open(b"latin-\\xe9", "w").write("x"); open("n" * 255, "w").write("y")' \\
 && python3 -c 'import os; os.makedirs("d/" * 100); open("d/" * 100 + "deep", "w").write("z")'
RUN rm /etc/issue.net && mkdir /etc/issue.net && rm -r /usr/share/pam && echo file > /usr/share/pam
ENTRYPOINT ["python3"]
CMD ["-c", "import scipy"]
"""
)

NGINX = """\
FROM {base}
RUN rm /etc/nginx/sites-enabled/default && echo hello > /var/www/html/index.html
EXPOSE 80
STOPSIGNAL SIGQUIT
CMD ["nginx", "-g", "daemon off;"]
"""


@dataclass(frozen=True)
class Recipe:
    """How one image is made."""

    dockerfile: str
    debian: tuple[str, ...] = BASE_PACKAGES
    wheels: tuple[str, ...] = ()
    version: str = ""
    on: str = ""
    """Another image that this one is built from."""

    @property
    def digest(self) -> str:
        """Changes with anything that the recipe says."""
        below = RECIPES[self.on].digest if self.on else ""
        return hashlib.sha256(repr((self, APP, SUITE, below)).encode()).hexdigest()[:12]


RECIPES = {
    "web": Recipe(WEB, wheels=("flask",), version="one"),
    "web2": Recipe(WEB2, version="two", on="web"),
    "nginx": Recipe(NGINX, debian=(*BASE_PACKAGES, "nginx-light")),
    "scipy": Recipe(SCIPY, wheels=("numpy", "scipy", "pandas")),
}
NAMES = tuple(RECIPES)


def ensure(engine: Engine, name: str) -> str:
    """Have the image *name* in *engine*; returns its reference."""
    recipe = RECIPES[name]
    ref = f"gear-test/{name}:{recipe.digest}"
    if engine.docker("image", "inspect", ref, check=False).returncode == 0:
        return ref
    saved = CACHE / f"{name}-{recipe.digest}.tar"
    if saved.exists():
        engine.docker("load", "-q", "-i", str(saved))
        return ref
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        (context / "app.py").write_text(APP.format(version=recipe.version))
        if recipe.wheels:
            _wheels(recipe.wheels, context / "wheels")
        base = ensure(engine, recipe.on) if recipe.on else _base(engine, recipe.debian)
        text = recipe.dockerfile.replace("{base}", base).replace("{web}", base)
        (context / "Dockerfile").write_text(text)
        engine.docker("build", "--network", "none", "-t", ref, folder, timeout=1200)
    partial = saved.with_suffix(".new")
    engine.docker("save", "-o", str(partial), ref)
    partial.rename(saved)
    return ref


def plugin_base(target: Path) -> Path:
    """A Debian tree for the plugin's root filesystem, as a tar; made if it is not there."""
    del target  # the tar is named by what it holds
    return _bootstrap(PLUGIN_PACKAGES)


def _base(engine: Engine, packages: tuple[str, ...]) -> str:
    tar = _bootstrap(packages)
    ref = f"gear-test/base:{tar.stem.removeprefix('base-')}"
    if engine.docker("image", "inspect", ref, check=False).returncode:
        engine.docker("import", str(tar), ref)
    return ref


def _bootstrap(packages: tuple[str, ...]) -> Path:
    name = hashlib.sha256(repr((packages, SUITE)).encode()).hexdigest()[:12]
    target = CACHE / f"base-{name}.tar"
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = CACHE / f"new-base-{name}.tar"
        words = ["mmdebstrap", "-q", "--variant=minbase", f"--include={','.join(packages)}"]
        subprocess.run([*words, SUITE, str(partial)], check=True)
        partial.rename(target)
    return target


def _wheels(packages: tuple[str, ...], target: Path) -> None:
    name = hashlib.sha256(repr(packages).encode()).hexdigest()[:12]
    kept = CACHE / f"wheels-{name}"
    if not kept.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = CACHE / f"new-wheels-{name}"
        pip = [str(Path(sys.executable).parent / "pip"), "download", "-q", "-d", str(partial)]
        options = ["--only-binary=:all:", "--python-version", PYTHON]
        subprocess.run([*pip, *options, *packages], check=True)
        partial.rename(kept)
    shutil.copytree(kept, target)
