from __future__ import annotations

from typing import Any

import pytest

from gear_plugin.jobs import dockerfile
from tests.unit.jobs.saves import CONFIG


def test_every_instruction_is_written() -> None:
    """
    One line each, quoted so that docker reads the value back.
    """
    assert dockerfile.text(CONFIG, "index.tar").splitlines() == [
        "FROM scratch",
        "ADD index.tar /",
        "MAINTAINER somebody",
        'ENV PATH="/bin:/usr/bin"',
        'ENV GREETING="hällo <&>"',
        r'LABEL "a b"="quoted \"x\""',
        "EXPOSE 80/tcp",
        'VOLUME ["/data"]',
        "WORKDIR /srv/app",
        "USER 1000:1000",
        "STOPSIGNAL SIGQUIT",
        'SHELL ["/bin/bash", "-c"]',
        "HEALTHCHECK --interval=30000000000ns --retries=2 CMD true",
        'CMD ["sh", "-c", "echo $GREETING"]',
        "ONBUILD RUN make",
    ]


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"Env": ["A=$B\\c"]}, r'ENV A="\$B\\c"'),
        ({"Env": ["EMPTY="]}, 'ENV EMPTY=""'),
        ({"Env": ["A=one\ntwo"]}, r'# not expressible, it has a line break: ENV A="one\ntwo"'),
        ({"WorkingDir": "/a $b"}, r"WORKDIR /a \$b"),
        ({"Healthcheck": {"Test": ["NONE"]}}, "HEALTHCHECK NONE"),
        ({"Healthcheck": {"Test": ["CMD", "a", "b"]}}, 'HEALTHCHECK CMD ["a", "b"]'),
        (
            {"Healthcheck": {"Test": ["CMD", "a"], "Timeout": 1, "StartPeriod": 2}},
            'HEALTHCHECK --timeout=1ns --start-period=2ns CMD ["a"]',
        ),
        ({"Entrypoint": ["/a b"], "Cmd": None}, 'ENTRYPOINT ["/a b"]'),
    ],
)
def test_values_that_need_care(config: dict[str, Any], line: str) -> None:
    """
    Nothing is expanded, split or lost on the way through a Dockerfile.
    """
    assert dockerfile.text({"config": config}, "index.tar").splitlines()[2:] == [line]


@pytest.mark.parametrize("config", [{}, {"config": None}, {"config": {"Healthcheck": {}}}])
def test_a_configuration_without_anything(config: dict[str, Any]) -> None:
    """
    An imported image has hardly any.
    """
    assert dockerfile.text(config, "i.tar") == "FROM scratch\nADD i.tar /\n"
