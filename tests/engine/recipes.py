"""
The real images of the tests and the benchmark, and what each is for.

A recipe says how an image is made: a layer of Debian packages and one of
Python packages on a common base, then a Dockerfile.  A task is what its users
run it for, with the output that proves it.  Values only; `images` makes them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from tests.engine.sources import SUITE, digest

BASE_PACKAGES = ("python3", "python3-venv", "libcap2-bin", "ca-certificates")


@dataclass(frozen=True)
class Recipe:
    """How one image is made; `{base}` in the Dockerfile is what the rest of this makes."""

    dockerfile: str
    files: tuple[tuple[str, str], ...] = ()
    """Names and texts, beside the Dockerfile."""
    debs: tuple[str, ...] = ()
    wheels: tuple[str, ...] = ()
    """In a virtual environment, /opt/venv."""
    npm: tuple[str, ...] = ()
    """In node_modules/, beside the Dockerfile."""
    on: str = ""
    """Another image that this one is built from."""
    layers: tuple[str, ...] = ()
    """Names of `odd_layers.LAYERS`, put on top as they are."""

    @property
    def digest(self) -> str:
        """Changes with anything that the recipe says."""
        below = RECIPES[self.on].digest if self.on else ""
        sources = [_source_digest("odd_layers.py")] if self.layers else []
        return digest(self, SUITE, BASE_PACKAGES, below, *sources)


@dataclass(frozen=True)
class Task:
    """
    What an image is for: *words* run in a container without network print *output*.

    `docker run --rm --network none *task.run(ref)`, or `docker exec *task.exec(container)`.
    """

    words: tuple[str, ...]
    output: str
    """Standard output, stripped."""
    user: str = "0"

    def run(self, ref: str) -> tuple[str, ...]:
        """The words after `docker run`, but for what the caller adds before them."""
        return ("--user", self.user, "--entrypoint", self.words[0], ref, *self.words[1:])

    def exec(self, container: str) -> tuple[str, ...]:
        """The words after `docker exec`."""
        return ("--user", self.user, container, *self.words)


def _source(name: str) -> str:
    return Path(__file__).with_name(name).read_text()


def _source_digest(name: str) -> str:
    return hashlib.sha256(_source(name).encode()).hexdigest()


PATH = "/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

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

WEB = f"""\
FROM {{base}}
ENV PATH={PATH}
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

WEB2 = """\
FROM {base}
COPY app.py .
"""

# Everything that a layer can do to the layers below it, and odd files.
SCIPY = f"""\
FROM {{base}}
ENV PATH={PATH}
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

SITE = """\
server {
    listen 127.0.0.1:80;
    root /var/www/html;
}
"""

NGINX = """\
FROM {base}
RUN rm /etc/nginx/sites-enabled/default && echo hello > /var/www/html/index.html
COPY site.conf /etc/nginx/conf.d/site.conf
EXPOSE 80
STOPSIGNAL SIGQUIT
CMD ["nginx", "-g", "daemon off;"]
"""

POSTGRES = """\
FROM {base}
RUN pg_dropcluster 15 main
ENV PATH=/usr/lib/postgresql/15/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ENV PGDATA=/var/lib/postgresql/data LANG=C.UTF-8
COPY entrypoint /usr/local/bin/
RUN chmod 755 /usr/local/bin/entrypoint && install -d -o postgres -g postgres "$PGDATA"
VOLUME /var/lib/postgresql/data
EXPOSE 5432
STOPSIGNAL SIGINT
ENTRYPOINT ["entrypoint"]
CMD ["postgres"]
"""

# As the well-known image does it: the first start makes the database.
POSTGRES_ENTRYPOINT = """\
#!/bin/sh
set -e
if [ ! -e "$PGDATA/PG_VERSION" ]; then initdb --no-sync -A trust >/tmp/initdb.log; fi
exec "$@"
"""

# A server on a socket, asked by a client, as in the image's own tests.
POSTGRES_TASK = """\
set -e
export PGDATA=/tmp/database PGHOST=/tmp
entrypoint pg_ctl -w -t 120 -l /tmp/log -o "-c fsync=off -k /tmp -h ''" start >/dev/null
psql -q -d postgres -c "CREATE TABLE n AS SELECT i FROM generate_series(1, 100) i"
psql -tA -d postgres -c "SELECT sum(i * i), to_char(sum(i), 'FMRN') FROM n WHERE i <= 60"
pg_ctl -w -m immediate stop >/dev/null
"""

NODE = """\
FROM {base}
WORKDIR /srv/app
COPY node_modules node_modules/
COPY server.js task.js ./
EXPOSE 3000
CMD ["node", "server.js"]
"""

NODE_SERVER = """\
const express = require("express");
const _ = require("lodash");
const app = express();
app.get("/sum/:n", (request, answer) => {
  answer.json({ sum: _.sum(_.range(1, +request.params.n + 1)) });
});
exports.server = app.listen(3000, "127.0.0.1");
"""

NODE_TASK = """\
const ts = require("typescript");
const source = "const half = (n: number): number => n / 2; exports.half = half;";
const compiled = ts.transpileModule(source, { compilerOptions: { module: "commonjs" } });
const half = new Function("exports", compiled.outputText + "; return exports.half;")({});
const { server } = require("./server.js");
server.on("listening", async () => {
  const answer = await (await fetch("http://127.0.0.1:3000/sum/12")).json();
  console.log(answer.sum, half(answer.sum));
  server.close();
  process.exit(0);
});
"""

JAVA = """\
FROM {base}
WORKDIR /srv/app
COPY Main.java .
RUN ecj -17 -proc:none -d classes -cp /usr/share/java/gson.jar Main.java && rm Main.java
ENV CLASSPATH=/srv/app/classes:/usr/share/java/gson.jar
CMD ["java", "Main"]
"""

JAVA_MAIN = """\
import com.google.gson.Gson;
import java.util.*;
import java.util.stream.*;

public class Main {
    public static void main(String[] arguments) {
        List<Integer> primes = IntStream.range(2, 10_000).parallel()
            .filter(n -> IntStream.rangeClosed(2, (int) Math.sqrt(n)).noneMatch(d -> n % d == 0))
            .boxed().sorted().collect(Collectors.toList());
        Map<String, Object> answer = new TreeMap<>();
        answer.put("count", primes.size());
        answer.put("last", primes.get(primes.size() - 1));
        System.out.println(new Gson().toJson(answer));
    }
}
"""

TINY = """\
FROM scratch
COPY bin/busybox /bin/busybox
RUN ["/bin/busybox", "--install", "/bin"]
CMD ["/bin/sh"]
"""

JUPYTER = f"""\
FROM {{base}}
ENV PATH={PATH} MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /srv/notebooks
COPY task.py .
EXPOSE 8888
CMD ["jupyter", "lab", "--allow-root"]
"""

JUPYTER_TASK = """\
import io
import matplotlib
import numpy as np
import pandas as pd
from sklearn.linear_model import LinearRegression
matplotlib.use("Agg")
import matplotlib.pyplot as plt
frame = pd.DataFrame({"x": np.arange(20.0)})
frame["y"] = 3 * frame.x + 1
line = LinearRegression().fit(frame[["x"]], frame.y)
picture = io.BytesIO()
frame.plot("x", "y")
plt.savefig(picture, format="png")
print(round(line.coef_[0], 6), round(line.intercept_, 6), picture.getvalue()[1:4].decode())
"""

JUPYTER_WHEELS = (
    *("numpy", "scipy", "pandas", "scikit-learn", "matplotlib", "statsmodels", "pyarrow"),
    *("sympy", "bokeh", "plotly", "jupyterlab", "scikit-image", "nltk", "networkx", "lightgbm"),
)

TORTURE = """\
FROM {base}
COPY odd_files.py /
RUN python3 /odd_files.py make
RUN python3 /odd_files.py change
RUN python3 /odd_files.py again
CMD ["python3", "/odd_files.py", "check"]
"""

RECIPES = {
    "web": Recipe(WEB, wheels=("flask",), files=(("app.py", APP.format(version="one")),)),
    "web2": Recipe(WEB2, on="web", files=(("app.py", APP.format(version="two")),)),
    "nginx": Recipe(NGINX, debs=("nginx-light",), files=(("site.conf", SITE),)),
    "scipy": Recipe(SCIPY, wheels=("numpy", "scipy", "pandas")),
    "postgres": Recipe(
        POSTGRES, debs=("postgresql-15",), files=(("entrypoint", POSTGRES_ENTRYPOINT),)
    ),
    "node": Recipe(
        NODE,
        debs=("nodejs",),
        npm=("express@4", "lodash@4", "typescript@5", "webpack@5"),
        files=(("server.js", NODE_SERVER), ("task.js", NODE_TASK)),
    ),
    "java": Recipe(
        JAVA,
        debs=("openjdk-17-jre-headless", "ecj", "libgoogle-gson-java"),
        files=(("Main.java", JAVA_MAIN),),
    ),
    "tiny": Recipe(TINY),
    # Over 1 GB in 50,000 files.
    "jupyter": Recipe(JUPYTER, wheels=JUPYTER_WHEELS, files=(("task.py", JUPYTER_TASK),)),
    # Every odd file there is.
    "torture": Recipe(
        TORTURE,
        files=(("odd_files.py", _source("odd_files.py")),),
        layers=("odd-lower", "odd-upper"),
    ),
}
NAMES = tuple(RECIPES)

_GET = (
    "import urllib.request, time\n"
    "for _ in range(3000):\n"
    "    try: print(urllib.request.urlopen('http://127.0.0.1:{port}/').read().decode()); break\n"
    "    except OSError: time.sleep(0.01)\n"
)
_WEB_TASK = f'python3 app.py >/tmp/log 2>&1 & python3 -c "{_GET.format(port=8000)}"; kill $!'

TASKS = {
    "web": Task(("sh", "-c", _WEB_TASK), "hello from one", user="www-data"),
    "web2": Task(("sh", "-c", _WEB_TASK), "hello from two", user="www-data"),
    "nginx": Task(
        ("sh", "-c", f'nginx; python3 -c "{_GET.format(port=80)}"; nginx -s quit'), "hello"
    ),
    "scipy": Task(
        ("python3", "-c", "import numpy, scipy.linalg; print(scipy.linalg.det(numpy.eye(3)))"),
        "1.0",
    ),
    "postgres": Task(("sh", "-c", POSTGRES_TASK), "73810|MDCCCXXX", user="postgres"),
    "node": Task(("node", "task.js"), "78 39"),
    "java": Task(("java", "Main"), '{"count":1229,"last":9973}'),
    "tiny": Task(("sh", "-c", "echo $((6 * 7)) | sha256sum | cut -c1-8"), "084c799c"),
    "jupyter": Task(("python3", "task.py"), "3.0 1.0 PNG"),
    "torture": Task(("python3", "/odd_files.py", "check"), "all odd"),
}
