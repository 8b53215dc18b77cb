"""The fault harness in short (`make faults` is the long form), and what it found."""

import errno
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from inversedmixup import cli, sealed
from inversedmixup.errors import InputError, clear_write_errors, out_of_memory
from inversedmixup.models.pair import Pair, read_config, write_config
from inversedmixup.runs import RunFolder


def test_a_few_faults_of_every_kind_end_in_the_same_bytes_or_in_one_clear_line():
    harness = str(Path(__file__).with_name("faults.py"))
    command = [sys.executable, harness, "--kills", "2", "--others", "1", "--jobs", "2"]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    counts = json.loads(done.stdout)["counts"]
    # each job is killed until a kill has hit it while it ran, and compared whenever it came to its end
    assert counts["resumed after SIGKILL: same bytes"] >= 2


def test_a_record_of_other_settings_or_with_a_flipped_bit_counts_as_not_done(tmp_path):
    RunFolder(tmp_path, {"n": 1}).write("shards/000000", ["row"])
    assert RunFolder(tmp_path, {"n": 1}).read("shards/000000") == ["row"]
    (tmp_path / "config.json").write_text("{ damaged")
    assert RunFolder(tmp_path, {"n": 1}).read("shards/000000") == ["row"]
    (tmp_path / "config.json").write_text('{"n": 1, "sha256": "0"}')
    assert RunFolder(tmp_path, {"n": 2}).read("shards/000000") is None
    path = tmp_path / "shards" / "000000.json"
    path.write_text(path.read_text().replace("row", "raw"))
    assert RunFolder(tmp_path, {"n": 2}).read("shards/000000") is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inputs_sha256": "c"}, "the rows of the input files have changed"),
        (
            {"inputs_sha256": "c", "files_sha256": {}},
            "the files of the pair or its models, --unlabelled or --descriptions have changed",
        ),
        ({"files_sha256": {}, "pair": "p"}, "pair: None there, 'p' now"),
        ({"pair": "p", "tries": 3.0}, "it was made by another command or another version"),
    ],
)
def test_what_has_changed_since_a_run_began_is_said_in_words(tmp_path, changes, words):
    settings = {"inputs_sha256": "a", "files_sha256": {"f": "b"}, "pair": None}
    RunFolder(tmp_path, settings).write("a", 1)
    with pytest.raises(InputError, match=re.escape(f"holds a run with other settings ({words})")):
        RunFolder(tmp_path, settings | changes)


def test_a_run_that_finished_nothing_does_not_stand_in_the_way(tmp_path):
    run = RunFolder(tmp_path, {"n": 1})
    run.write("provenance", {"command": "c"})
    del run
    assert RunFolder(tmp_path, {"n": 2}).read("provenance") is None
    RunFolder(tmp_path, {"n": 2}).part("shards").write("000000", [])
    with pytest.raises(InputError, match="other settings"):
        RunFolder(tmp_path, {"n": 1})


def test_a_folder_is_one_process_at_a_time_and_a_killed_one_leaves_no_lock(tmp_path):
    code = "import sys; from pathlib import Path; from inversedmixup.runs import RunFolder; "
    code += "run = RunFolder(Path(sys.argv[1]), {'n': 1}); print('there', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "there\n"
    for overwrite in (False, True):
        with pytest.raises(InputError, match="another run is working in"):
            RunFolder(tmp_path, {"n": 2}, overwrite=overwrite)
    process.kill()
    process.communicate()
    first, second = RunFolder(tmp_path, {"n": 1}).part("p"), RunFolder(tmp_path, {"n": 1})
    first.write("a", 1)
    assert second.part("p").read("a") == 1


def test_a_folder_is_kept_from_the_processes_of_its_own_process_too(tmp_path):
    run = RunFolder(tmp_path, {"n": 1})
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with pytest.raises(InputError, match="another run is working in"):
            pool.submit(RunFolder, run.folder, {"n": 1}).result()
        assert pool.submit(partial(RunFolder, lock=False), run.folder, {"n": 1}).exception() is None


@pytest.mark.parametrize("at", [-1, 70])
def test_a_flipped_bit_in_sealed_tensors_is_noticed(tmp_path, at):
    path = tmp_path / "t.safetensors"
    sealed.write_tensors(path, {"a": torch.ones(3), "b": torch.zeros((), dtype=torch.int64)}, "state")
    tensors, state = sealed.read_tensors(path)
    assert (tensors["a"].tolist(), state) == ([1, 1, 1], "state")
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"t\.safetensors: damaged"):
        sealed.read_tensors(path)


def test_what_a_kill_left_of_a_seal_is_no_part_of_the_next(tmp_path):
    (tmp_path / "weights").write_text("w")
    (tmp_path / f"{sealed.SEAL}.partial").write_text("{")
    sealed.seal_folder(tmp_path)
    assert sealed.is_whole(tmp_path)


def test_a_flipped_bit_in_a_pair_is_refused_by_file(tmp_path, tiny_pair):
    tiny_pair.save(tmp_path, encoder=True)
    write_config(tmp_path, read_config(tmp_path))
    Pair.load(tmp_path)
    for name in ("adaptor.safetensors", "encoder/model.safetensors", "encoder/tokenizer.json"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(InputError, match=f"{name}: damaged"):
            Pair.load(tmp_path)
        (tmp_path / name).write_bytes(whole)
    record = (tmp_path / "pair.json").read_text()
    (tmp_path / "pair.json").write_text(record.replace('"lora_rank": 0', '"lora_rank": 8', 1))
    with pytest.raises(InputError, match=r"pair\.json: damaged, or edited"):
        Pair.load(tmp_path)


def test_a_full_disk_told_by_a_library_is_one_clear_line_too(tmp_path):
    with pytest.raises(InputError, match=r"cannot be written .No space left on device"), clear_write_errors(tmp_path):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    with pytest.raises(RuntimeError, match="another"), clear_write_errors(tmp_path):
        raise RuntimeError("another (os error 5000)")


@pytest.mark.parametrize("number", [errno.EPERM, errno.EBUSY, errno.ENAMETOOLONG])
def test_a_file_that_may_not_be_replaced_is_one_clear_line(tmp_path, number):
    with pytest.raises(InputError, match=r"o\.csv: cannot be written"), clear_write_errors(tmp_path):
        raise OSError(number, os.strerror(number), "o.csv")


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(12, "Cannot allocate memory"), RuntimeError("could not create a primitive")]
)
def test_failed_allocations_are_one_clear_line(monkeypatch, capsys, error):
    import inversedmixup.commands.models as command

    def fails(options):
        raise error

    monkeypatch.setattr(command, "run", fails)
    assert out_of_memory(error)
    assert cli.main(["models"]) == 2
    assert "memory has run out" in capsys.readouterr().err
    assert not out_of_memory(RuntimeError("a bug"))
