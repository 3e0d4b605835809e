"""
The image that scenarios work with: a real one, and in it every odd file.

What a scenario changes lies then in the layers of the ordinary image, and in
the index of the Gear image.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.engine import images, odd_files, odd_layers
from tests.engine.engine import Engine

MANY = "MANY=50"

_DOCKERFILE = """\
FROM {base}
USER 0
WORKDIR /
ENTRYPOINT []
CMD ["sh"]
HEALTHCHECK NONE
ENV PYTHONDONTWRITEBYTECODE=1 {many}
COPY odd_files.py /
RUN ["python3", "-c", "from odd_files import *; names(); modes(); links(); symlinks(); \\
    specials(); contents(); folders(); things_to_change(); write(b'/odd/implied/lower', b'x')"]
RUN mkdir -p /odd/copied/up && cd /odd/copied && echo text > file && ln file hard \\
 && ln -s file link && ln -s / root && chown -R 33:44 /odd/copied && chmod 2751 up \\
 && cp /usr/bin/id setuid && chmod 4755 setuid && cp /usr/bin/python3 capable \\
 && setcap cap_net_bind_service+ep capable && touch -h -d @1500000000 * .
"""

# A whiteout that hides nothing is among them: overlay2 lists its name, and no
# builder can copy from an image that has one (docs/fidelity.md).
_WITHOUT = """\
FROM {base}
RUN rm -rf /odd/tar/order
"""


def make(engine: Engine, ref: str, scratch: Path) -> None:
    """Have the image as *ref* in *engine*, which also has it as it is before the odd layers."""
    below = images.ensure(engine, "web")
    folder = scratch / "differential-base"
    folder.mkdir()
    shutil.copy(Path(odd_files.__file__), folder)
    text = _DOCKERFILE.replace("{base}", below).replace("{many}", MANY)
    (folder / "Dockerfile").write_text(text)
    engine.docker("build", "--network", "none", "-t", ref, str(folder))
    odd_layers.stack(engine, ref, ("odd-lower", "odd-upper"), folder)
    (folder / "Dockerfile").write_text(_WITHOUT.replace("{base}", ref))
    engine.docker("build", "--network", "none", "-t", ref, str(folder))
