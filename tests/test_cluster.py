"""Stage 3 on a local Ray cluster, and files at URLs: the rows of one process, whatever dies."""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import shutil
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from inversedmixup import augment_job, cluster, remote
from inversedmixup.augment_job import AugmentJobConfig, run_augment_job
from inversedmixup.cli import main
from inversedmixup.errors import InputError
from inversedmixup.files import iter_records
from inversedmixup.judges.tuned import TunedJudge
from inversedmixup.labelled import class_numbers
from inversedmixup.models.pair import Pair
from inversedmixup.options import NOTHING, build, deciding
from inversedmixup.stages.augment import RowWriter
from test_augment_job import QUICK

needs_ray = pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed")


@pytest.fixture
def config(tiny_pair_folder):
    def make(**options):
        return build(AugmentJobConfig, {**QUICK, "pair": tiny_pair_folder}, options)

    return make


@pytest.mark.parametrize(
    ("engine", "address"), [("ray", ""), ("ray:auto", "auto"), ("ray:ray://host:10001", "ray://host:10001"),
                            ("vllm", None), ("rayon", None)],
)  # fmt: skip
def test_an_engine_names_a_cluster_or_none(engine, address):
    assert cluster.address_of(engine) == address


def test_unknown_engines_and_shares_of_nothing_are_refused(config):
    with pytest.raises(InputError, match=r"engine: 'rayon' is not one of transformers, vllm, ray, ray:ADDRESS"):
        config(engine="rayon")
    with pytest.raises(InputError, match="workers 0"):
        config(workers=0)
    with pytest.raises(InputError, match="a worker needs some of one"):
        config(worker_cpus=0.0)


def test_without_ray_the_package_to_install_is_named(train_file, tmp_path, config, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'ray\[data\]"):
        run_augment_job(str(train_file), str(tmp_path / "o.jsonl"), config(engine="ray"))


@pytest.fixture(scope="module")
def two_nodes():
    """A cluster of two nodes on this machine; the second may be killed and is replaced."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


@needs_ray
def test_a_cluster_gives_the_bytes_of_one_process_and_either_takes_up_the_other(
    train_file, tmp_path, config, two_nodes
):
    options = {"n": 150, "tries": 2.0}
    engine = f"ray:{two_nodes.address}"
    run_augment_job(str(train_file), str(tmp_path / "one.parquet"), config(**options))
    run_augment_job(str(train_file), str(tmp_path / "many.parquet"), config(engine=engine, **options))
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "many.parquet").read_bytes()
    shards = sorted((tmp_path / "many.parquet.run" / "shards").iterdir())
    for path in shards[::2]:
        path.unlink()
    kept = shards[1].stat().st_mtime_ns
    run_augment_job(str(train_file), str(tmp_path / "many.parquet"), config(**options))
    run_augment_job(str(train_file), str(tmp_path / "many.parquet"), config(engine=engine, workers=1, **options))
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "many.parquet").read_bytes()
    assert shards[1].stat().st_mtime_ns == kept


@needs_ray
def test_a_judge_is_tuned_once_for_the_whole_cluster(train_file, tmp_path, config, two_nodes):
    options = {"n": 120, "labels": "pool:task+tuned", "judge_steps": 2, "force_judge": True, "pairs": "cross-class"}
    run_augment_job(str(train_file), str(tmp_path / "one.jsonl"), config(**options))
    many = tmp_path / "many.jsonl"
    run_augment_job(str(train_file), str(many), config(engine=f"ray:{two_nodes.address}", **options))
    assert (tmp_path / "one.jsonl").read_bytes() == many.read_bytes()
    (tmp_path / "many.jsonl.run" / "shards" / "000002.json").unlink()
    shutil.rmtree(tmp_path / "many.jsonl.run" / "tuned")
    run_augment_job(str(train_file), str(many), config(engine=f"ray:{two_nodes.address}", **options))
    assert (tmp_path / "one.jsonl").read_bytes() == many.read_bytes()


def test_what_the_judges_need_travels_in_files(tiny_pair, examples, config, tmp_path, monkeypatch):
    classes = sorted({example.label for example in examples})
    described = tmp_path / "described.yaml"
    described.write_text("refund: the money back please\n")
    options = {"labels": "pool:llm+tuned", "judge_steps": 2, "force_judge": True, "descriptions": str(described)}
    tiny_pair.task_model.set_classes(classes)
    here = RowWriter(tiny_pair, examples, classes, config(**options), folder=tmp_path / "here")
    task = cluster.Task.of(here, lambda block: block)
    assert {"tuned/seal.json", "tuned/adapter_model.safetensors", "descriptions.yaml"} <= set(task.files)
    shutil.rmtree(tmp_path / "here")
    described.unlink()
    tiny_pair.save(tmp_path / "pair", encoder=True)
    monkeypatch.setattr(TunedJudge, "_tuned", None)  # nobody tunes it again
    monkeypatch.setattr(cluster, "_block", lambda block: block)
    there = task.writer(Pair.load(tmp_path / "pair"))
    assert there.shard(0) == here.shard(0)


def test_a_worker_reads_the_llm_that_a_pair_carries_again_for_the_judge(
    tiny_pair, examples, config, tmp_path, monkeypatch
):
    classes = sorted({example.label for example in examples})
    tiny_pair.task_model.set_classes(classes)
    tiny_pair.config.own_llm = True
    tiny_pair.save(tmp_path / "pair", encoder=True)
    pair = Pair.load(tmp_path / "pair")
    here = RowWriter(
        pair, examples, classes, config(labels="pool:task+tuned", judge_steps=2, force_judge=True),
        folder=tmp_path / "here",
    )  # fmt: skip
    task = cluster.Task.of(here, lambda block: block)
    models = cluster.Models.read(tmp_path / "pair", llm=None, device="cpu", dtype="float32")
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda reference: reference))
    monkeypatch.setattr(cluster, "_block", lambda block: block)
    shutil.move(tmp_path / "pair", tmp_path / "elsewhere")
    monkeypatch.setattr(TunedJudge, "_tuned", None)  # nobody tunes it again
    worker = cluster.ShardWorker(models, task)
    assert len(worker({"item": np.array([0])})["made"]) == 1


def test_rows_travel_in_blocks_of_which_a_worker_holds_a_few(examples, monkeypatch):
    assert cluster._block.cache_parameters()["maxsize"] == cluster.BLOCKS_HELD
    store, asked = [], []
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda at: asked.append(at) or store[at]))
    monkeypatch.setattr(cluster, "BLOCK_BYTES", 150)
    monkeypatch.setattr(cluster, "_block", functools.lru_cache(maxsize=2)(cluster._block.__wrapped__))
    rows = cluster.SharedRows(examples, lambda block: store.append(block) or len(store) - 1)
    assert len(store) > 3
    assert list(rows) == examples
    assert asked == list(range(len(store)))
    assert [rows[at] for at in (-1, 0, 1)] == [examples[-1], *examples[:2]]
    assert asked[len(store) :] == [0]  # the last one was still held, the first was not
    assert np.array_equal(class_numbers(rows, rows.classes), class_numbers(examples, rows.classes))


@needs_ray
def test_workers_of_a_machine_share_what_rows_are_drawn_from(tiny_pair, examples, config, two_nodes):
    import ray

    many = [dataclasses.replace(row, id=f"{row.id}-{copy}") for copy in range(1000) for row in examples]
    tiny_pair.task_model.set_classes(sorted({example.label for example in examples}))
    writer = RowWriter(tiny_pair, many, tiny_pair.task_model.classes, config(pairs="any"))
    ray.init(two_nodes.address, ignore_reinit_error=True, log_to_driver=False)
    try:
        received = ray.get(ray.put(cluster.Task.of(writer, ray.put)))
        there = received.writer(tiny_pair)
        assert there.shard(3) == writer.shard(3)
        for numbers in (there.sampler._ordered, there.sampler._place, there.examples.ends, there.examples.numbers):
            assert not numbers.flags.writeable  # Ray's own memory, not a copy
    finally:
        ray.shutdown()


@needs_ray
@pytest.mark.parametrize("how", ["enough rows", "an error"])
def test_a_pipeline_does_not_outlive_its_cluster(tiny_pair, examples, config, two_nodes, tmp_path, monkeypatch, how):
    """Ray ends the whole process, exit code 1, when a thread asks it for something after its shutdown."""
    import ray

    tiny_pair.task_model.set_classes(sorted({example.label for example in examples}))
    tiny_pair.save(tmp_path, encoder=True)
    writer = RowWriter(tiny_pair, examples, tiny_pair.task_model.classes, config(pairs="any"))
    models = cluster.Models.read(tmp_path, llm=None, device="cpu", dtype="float32")
    shutdown, alive, before = ray.shutdown, [], set()

    def watched():
        alive.append({thread.name for thread in set(threading.enumerate()) - before} - {"Prefetcher"})  # left parked
        shutdown()

    monkeypatch.setattr(ray, "shutdown", watched)
    expected = contextlib.nullcontext() if how == "enough rows" else pytest.raises(KeyboardInterrupt)
    with expected, cluster.Cluster(two_nodes.address, cluster.ClusterConfig(), models) as workers:
        before |= set(threading.enumerate())
        shards = workers.shards(writer, range(400))
        next(shards)
        if how == "an error":
            raise KeyboardInterrupt
    assert alive == [set()]


@needs_ray
def test_a_node_that_dies_in_the_middle_costs_time_and_nothing_else(train_file, tmp_path, config, two_nodes):
    options = {"n": 400, "tries": 2.0}
    run_augment_job(str(train_file), str(tmp_path / "one.jsonl"), config(**options))
    two_nodes.add_node(num_cpus=1)
    shards = tmp_path / "many.jsonl.run" / "shards"

    def kill():
        import ray

        while not shards.exists() or len(list(shards.iterdir())) < 2:
            time.sleep(0.01)
        # all nodes have this machine's address, and a driver dies with the node that it happened to connect to
        own = ray.get_runtime_context().get_node_id()
        two_nodes.remove_node(next(n for n in two_nodes.worker_nodes if n.node_id != own), allow_graceful=False)

    thread = threading.Thread(target=kill)
    thread.start()
    run_augment_job(str(train_file), str(tmp_path / "many.jsonl"), config(engine=f"ray:{two_nodes.address}", **options))
    thread.join()
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "many.jsonl").read_bytes()


@needs_ray
def test_a_worker_that_cannot_work_is_one_clear_line(train_file, tmp_path, config, two_nodes):
    engine = f"ray:{two_nodes.address}"
    with pytest.raises(InputError, match="no room for one worker"):
        run_augment_job(str(train_file), str(tmp_path / "a.jsonl"), config(engine=engine, worker_gpus=1.0))
    with pytest.raises(InputError, match="no room for one worker"):
        run_augment_job(str(train_file), str(tmp_path / "b.jsonl"), config(engine=engine, worker_cpus=64.0))


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "127.0.0.1:99999"])
def test_no_cluster_at_the_address_is_one_clear_line_before_any_work(train_file, tmp_path, config, address):
    with pytest.raises(InputError, match=f"--engine ray:{address}: no cluster there"):
        run_augment_job(str(train_file), str(tmp_path / "o.jsonl"), config(engine=f"ray:{address}"))
    assert not (tmp_path / "o.jsonl.run").exists()


def test_a_run_on_a_cluster_records_the_command_that_was_given(train_file, tmp_path, config, monkeypatch):
    monkeypatch.setattr(augment_job, "check_address", lambda address: None)
    given = config(engine="ray:10.0.0.1:6379", workers=3, labels="soft", pairs="same-class")
    with augment_job.on_this_machine([train_file], tmp_path / "out.jsonl", given) as names:
        job = augment_job._AugmentJob(names, given)
    command = job.run_folder.read("provenance")["command"]
    assert "--engine=ray:10.0.0.1:6379" in command
    assert "--workers=3" in command


def test_files_at_urls(train_file, tmp_path, config, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    run_augment_job(str(train_file), "plain.parquet", config())
    result = run_augment_job(train_file.as_uri(), f"file://{tmp_path}/there.parquet", config())
    assert (tmp_path / "there.parquet").read_bytes() == (tmp_path / "work" / "plain.parquet").read_bytes()
    assert (tmp_path / "there.rejected.parquet").exists()
    assert len(list(iter_records(tmp_path / "there.parquet"))) == result.summary["kept"]
    made = json.loads((tmp_path / "work" / "there.parquet.run" / "provenance.json").read_text())["value"]
    assert f"augment {train_file.as_uri()} -o file://{tmp_path}/there.parquet" in made["command"]
    assert made["train"] == train_file.name
    run_augment_job(train_file.as_uri(), f"file://{tmp_path}/there.parquet", config())  # it is ours


def test_what_lies_at_a_url_is_not_replaced(train_file, tmp_path, config, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    before = train_file.read_bytes()
    with pytest.raises(InputError, match="would replace an input"):
        run_augment_job(train_file.as_uri(), train_file.as_uri(), config())
    with pytest.raises(InputError, match="would replace an input"):  # however it is named, and whatever is said
        run_augment_job(str(train_file), train_file.as_uri(), config(overwrite=True))
    own = config(test=str(train_file), overwrite=True)
    with pytest.raises(InputError, match="would replace an input"):
        run_augment_job(str(tmp_path / "another.jsonl"), train_file.as_uri(), own)
    (tmp_path / "mine.rejected.jsonl").write_text("precious")
    output = f"file://{tmp_path}/mine.jsonl"
    with pytest.raises(InputError, match=r"mine\.rejected\.jsonl: is there already"):
        run_augment_job(str(train_file), output, config())
    assert (train_file.read_bytes(), (tmp_path / "mine.rejected.jsonl").read_text()) == (before, "precious")
    assert not list((tmp_path / "work").iterdir())
    run_augment_job(str(train_file), output, config(overwrite=True))
    assert "precious" not in (tmp_path / "mine.rejected.jsonl").read_text()


@pytest.mark.parametrize("ending", ["?2.jsonl", "#2.jsonl"])
def test_a_url_that_differs_only_after_a_mark_is_another_one(train_file, tmp_path, config, monkeypatch, ending):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    ours, other = f"file://{tmp_path}/mine.jsonl", tmp_path / f"mine.jsonl{ending}"
    run_augment_job(str(train_file), ours, config())
    other.write_text("precious")
    with pytest.raises(InputError, match="is there already"):
        run_augment_job(str(train_file), f"{ours}{ending}", config())
    assert other.read_text() == "precious"
    run_augment_job(str(train_file), ours, config())


def test_what_is_wrong_in_a_file_at_a_url_is_said_of_the_url(train_file, tmp_path, config, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    bad = tmp_path / "bad.jsonl"
    bad.write_text(train_file.read_text() + '{"text": "no label"}\n')
    for text in ('{"text": 7, "label": "a"}\n', "{\n"):
        bad.write_text(text)
        with pytest.raises(InputError) as refused:
            run_augment_job(bad.as_uri(), "o.jsonl", config())
        assert str(refused.value).startswith(f"{bad.as_uri()}: ")
    bad.write_text(train_file.read_text() + '{"text": "", "label": "x"}\n')
    run_augment_job(bad.as_uri(), "o.jsonl", config())
    assert f"{bad.as_uri()}: 1 row(s) left out" in caplog.text
    assert "inversedmixup-" not in caplog.text


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://host/o.jsonl", "a web server takes no files"),
        ("nosuch://b/o.jsonl", "Protocol not known: nosuch"),
    ],
)
def test_a_url_that_cannot_be_written_is_refused_before_any_work(train_file, tmp_path, config, monkeypatch, url, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        run_augment_job(str(train_file), url, config())
    assert not (tmp_path / "o.jsonl.run").exists()


def test_a_url_that_cannot_be_had_is_one_clear_line_without_its_password(tmp_path, capsys):
    for url in ("nosuch://user:s3cret@host/t.csv", f"file://{tmp_path}/none.csv"):
        assert main(["augment", url, "-o", str(tmp_path / "o.jsonl")]) == 2
        shown = capsys.readouterr().err
        assert "s3cret" not in shown
        assert "Traceback" not in shown
    assert remote.shown("https://me:s3cret@host/a/t.csv?X-Signature=b/c#d") == "https://host/a/t.csv"
    assert remote.shown("https://me:s3c@ret@host/t.csv") == "https://host/t.csv"
    assert remote.shown("file:///mail@home/t.csv") == "file:///mail@home/t.csv"
    assert remote.shown("filecache::https://me:s3cret@host/t.csv") == "filecache::https://host/t.csv"
    assert remote.local_name("s3://bucket/a/b.csv") == "b.csv"
    assert remote.sibling("s3://bucket/a/b.csv", "c.csv") == "s3://bucket/a/c.csv"


def test_how_the_work_is_spread_is_no_setting_of_a_run(config):
    names = {field.name for field in dataclasses.fields(cluster.ClusterConfig)}
    assert names <= deciding(config(), NOTHING).keys()


def test_a_judge_that_every_worker_would_pay_for_again_is_refused():
    with pytest.raises(InputError, match="works in one process"):
        cluster.check_labels("mitigated:task+api")
    cluster.check_labels("pool:task+tuned")
