"""TLS by settings: what fits together, and what is said when it does not."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from gear_plugin.errors import BadConfig
from gear_plugin.jobs.tls import Tls
from tests import certificates


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates.make(tmp_path_factory.mktemp("tls"))


def test_no_settings_no_tls() -> None:
    """The default."""
    assert Tls.of(None, None, None) is None


def test_all_that_belongs_together(made: Path) -> None:
    """With and without a CA."""
    assert Tls.of(made / "server.pem", made / "server.key", None)
    assert Tls.of(made / "server.pem", made / "server.key", made / "ca.pem")


@pytest.mark.parametrize(
    ("cert", "key", "ca", "said"),
    [
        ("server.pem", None, None, "'tls_key' is missing"),
        (None, "server.key", None, "'tls_cert' is missing"),
        (None, None, "ca.pem", "'tls_cert' is missing"),
        ("gone.pem", "server.key", None, "'tls_cert': cannot read .*gone.pem: No such file"),
        ("server.pem", "gone.key", None, "'tls_key': cannot read .*gone.key: No such file"),
        ("server.pem", "server.key", "gone", "'tls_ca': cannot read .*gone: No such file"),
        ("server.pem", "server.key", "ca.key", "'tls_ca': .*ca.key holds no certificate"),
        ("server.key", "server.key", None, "no certificate and its key"),
        ("server.pem", "ca.key", None, "no certificate and its key.*MISMATCH"),
        ("server.pem", "locked.key", None, "without a password"),
    ],
)
def test_what_does_not_fit_is_named(
    made: Path, cert: str | None, key: str | None, ca: str | None, said: str
) -> None:
    """One line that names the setting; a password is not asked for."""
    locked = made / "locked.key"
    if not locked.exists():
        words = ["openssl", "ec", "-aes128", "-passout", "pass:secret"]
        words += ["-in", str(made / "server.key"), "-out", str(locked)]
        subprocess.run(words, check=True, capture_output=True)
    paths = [made / name if name else None for name in (cert, key, ca)]
    with pytest.raises(BadConfig, match=said) as raised:
        Tls.of(*paths)
    assert "\n" not in str(raised.value)
