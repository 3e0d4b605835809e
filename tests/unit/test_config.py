"""The settings: who wins, what is refused, and how it is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from gear_plugin import config
from gear_plugin.config import Config, load, misspelt
from gear_plugin.errors import BadConfig


@pytest.fixture(autouse=True)
def no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in /etc does not matter here."""
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "absent.toml")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gear.toml"
    path.write_text('root = "/file"\nrun = "/file"\nstore = "/file"\n')
    return path


def test_flag_beats_environment_beats_file_beats_default(file: Path) -> None:
    """And a flag that was not given (None) beats nothing."""
    environ = {"GEAR_ROOT": "/env", "GEAR_RUN": "/env"}
    found = load({"root": "/flag", "run": None}, environ=environ, file=file)
    assert (str(found.root), str(found.run), found.store) == ("/flag", "/env", "/file")
    assert found.catalog == Config().catalog


def test_file_named_by_the_environment(file: Path) -> None:
    """GEAR_CONFIG; and it must be there, since somebody asked for it."""
    assert load(environ={"GEAR_CONFIG": str(file)}).store == "/file"
    with pytest.raises(BadConfig, match="does not exist"):
        load(environ={"GEAR_CONFIG": str(file) + "x"})


def test_no_file_is_fine() -> None:
    """All defaults."""
    assert load(environ={}) == Config()


def test_relative_folders_are_taken_from_where_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Daemons that are started with them stand in /."""
    monkeypatch.chdir(tmp_path)
    found = load({"root": Path("r")}, environ={"GEAR_RUN": "run", "GEAR_STORE": "../s"})
    assert (found.root, found.run) == (tmp_path / "r", tmp_path / "run")
    assert found.store == f"{tmp_path}/../s"


def test_what_looks_like_a_setting_is_told() -> None:
    """And nothing else: others may have variables of that prefix, too."""
    environ = dict.fromkeys(["GEAR_STROE", "GEAR_STORE", "GEAR_CONFIG", "GEAR_XYZ", "STROE"], "x")
    assert misspelt(environ) == [("GEAR_STROE", "GEAR_STORE")]


def test_a_store_on_nfs_is_no_folder() -> None:
    """Whatever folder the command runs in."""
    assert load({"store": "nfs://host/export"}, environ={}).store == "nfs://host/export"


def test_plugin_settings_have_bare_names() -> None:
    """Docker passes every declared variable; an empty one is unset."""
    environ = {"store": "/mnt", "cache_limit": "", "GEAR_ROOT": ""}
    found = load(environ=environ, bare_names=True)
    assert (found.store, found.cache_limit, found.root) == ("/mnt", 0, Config().root)
    assert load(environ=environ | {"GEAR_ROOT": "/x"}).store == Config().store


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1k", 1024),
        ("512M", 2**29),
        ("20 GiB", 20 * 2**30),
        ("1t", 2**40),
    ],
)
def test_sizes_have_units(text: str, size_bytes: int) -> None:
    """Powers of 1,024, in either case."""
    assert load(environ={"GEAR_CACHE_LIMIT": text}).cache_limit == size_bytes


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("cache_limit", "a lot"),
        ("cache_limit", "-1"),
        ("cache_limit", "1.5G"),
        ("fuse_workers", "1"),
        ("fuse_workers", "many"),
        ("fetch_stall_s", "0"),
        ("fetch_timeout_s", "-3"),
        ("mount_way", "sideways"),
        ("log_level", "loud"),
    ],
)
def test_wrong_values_name_their_setting(setting: str, value: str) -> None:
    """One line that says which."""
    with pytest.raises(BadConfig, match=setting) as caught:
        load(environ={f"GEAR_{setting.upper()}": value})
    assert "\n" not in str(caught.value)


def test_unknown_setting_is_an_error(tmp_path: Path) -> None:
    """A typing error must not be a default in silence; the message lists what there is."""
    path = tmp_path / "gear.toml"
    path.write_text('stroe = "/mnt"\n')
    with pytest.raises(BadConfig, match=r"stroe.*known settings: .*store"):
        load(environ={}, file=path)


@pytest.mark.parametrize("content", [b"root = ", b"\xff\xfe", b"root"])
def test_malformed_file_is_named(tmp_path: Path, content: bytes) -> None:
    """The path is in the message."""
    path = tmp_path / "gear.toml"
    path.write_bytes(content)
    with pytest.raises(BadConfig, match=str(path)):
        load(environ={}, file=path)


def test_settings_do_not_change() -> None:
    """Read once, then frozen."""
    with pytest.raises(ValueError, match="frozen"):
        Config().root = Path("/x")  # type: ignore[misc]
