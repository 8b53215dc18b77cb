"""What stage 1 can teach: to invert embeddings (the paper's stage 1), and then words and correction."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from inversedmixup import reconstruction
from inversedmixup.data import iter_texts
from inversedmixup.errors import InputError
from inversedmixup.mixing import row_stream
from inversedmixup.models.pair import Pair, copy_pair, pair_folder
from inversedmixup.models.sampling import GREEDY, WORD_WEIGHT, Sampling
from inversedmixup.models.task_model import TaskModel
from inversedmixup.models.word_head import WordHead
from inversedmixup.sealed import read_record, read_tensors, write_record, write_tensors
from inversedmixup.stages.stream import Chunk, in_lists, varied

if TYPE_CHECKING:
    from inversedmixup.stages.align import AlignConfig

DEFAULT_PAIR = "default"  # the word for the pair that ships, where a folder is expected
COUNTED = 100_000  # texts that say which tokens a word head knows, and how common they are
BATCH = 64  # texts written at a time when a pair is scored
# what a pair looks like; of no use to what is taught to a trained one
SHAPE_OPTIONS = ("soft_tokens", "hidden", "layers", "prompt", "lora", "train_llm", "encoder_lora")


class Lesson(Protocol):
    """What is trained, and how a batch teaches it.

    Attributes:
        pair: the pair at hand.
        weights: what is trained, by the name that checkpoints know it by.
        taught: key of the pair's training record that tells of this lesson; empty for the first, inverting.
    """

    taught: str
    pair: Pair
    weights: dict[str, nn.Parameter]

    def prepare(self, number: int, chunk: Chunk) -> Any:  # noqa: ANN401 (the lesson's own)
        """What the batches of chunk ``number`` need; the same whenever it is asked for."""
        ...

    def backward(self, chunk: Chunk, prepared: Any, rows: np.ndarray, tokens: int, batch: int) -> Tensor:  # noqa: ANN401
        """Add the gradients of some rows of a batch of ``batch`` rows and ``tokens`` target tokens.

        Returns:
            Their parts of the loss and of the drift of the embeddings, [2].
        """
        ...

    def validate(self, texts: Sequence[str]) -> dict[str, float]:
        """Scores on held-out texts."""
        ...

    def save(self, folder: Path) -> None:
        """Write the pair."""
        ...


class Inverting:
    """L_GEN = −log P_ψ(x | A_φ(M_θ(x))), and with LoRA on the encoder an anchor to its original embeddings."""

    taught = ""

    def __init__(self, config: AlignConfig, folder: Path, corpus: Sequence[str | Path], *, writes: bool) -> None:
        self.config, self.folder, self.writes = config, folder, writes
        self.pair = Pair.fresh(
            config.encoder, config.llm, soft_tokens=config.soft_tokens, hidden=config.hidden, layers=config.layers,
            prompt=config.prompt, lora=config.lora, encoder_lora=config.encoder_lora, seed=config.seed,
            device=config.device, dtype="float32" if config.train_llm else config.dtype,
        )  # fmt: skip
        if config.start:
            self.pair.start_from(None if config.start == DEFAULT_PAIR else config.start)
        if config.train_llm:
            self.pair.llm.model.requires_grad_()
            self.pair.config.own_llm = True
        self.weights = {**_weights("adaptor", self.pair.adaptor), **_weights("llm", self.pair.llm.model)}
        # the embeddings that the anchor holds on to
        self.original = self.pair.task_model
        if config.encoder_lora:
            self.weights |= _weights("encoder", self.pair.encoder_lora)
            self.original = TaskModel.from_pretrained(self.pair.config.encoder, device=config.device)

    def prepare(self, number: int, chunk: Chunk) -> Tensor:
        """Embeddings [n, d] by the encoder as it came; kept on disk, as they are the same in every pass."""
        return kept_embeddings(self.original, chunk.texts, self.folder, writes=self.writes)

    def backward(self, chunk: Chunk, prepared: Tensor, rows: np.ndarray, tokens: int, batch: int) -> Tensor:
        """See :class:`Lesson`."""
        original = prepared[torch.from_numpy(rows)].to(self.config.device)
        embeddings = original
        if self.config.encoder_lora:
            embeddings = self.pair.task_model([chunk.texts[row] for row in rows])
        drift = (1 - nn.functional.cosine_similarity(embeddings, original, dim=-1)).sum() / batch
        nll = self.pair.llm.nll(self.pair.adaptor(embeddings), [chunk.targets[row] for row in rows])
        generation = nll.sum() / tokens
        (generation + self.config.anchor * drift).backward()  # type: ignore[no-untyped-call]
        return torch.stack([generation, drift]).detach().float()

    def validate(self, texts: Sequence[str]) -> dict[str, float]:
        """Loss and greedy reconstruction scores."""
        self.pair.adaptor.eval()
        scores = evaluate_pair(self.pair, texts, self.config.max_tokens)
        self.pair.adaptor.train()
        return scores

    def save(self, folder: Path) -> None:
        """Write the pair."""
        self.pair.save(folder, encoder=False)


@dataclasses.dataclass(frozen=True)
class Attempts:
    """What the pair wrote for the texts of a chunk: embeddings [n, d] wanted and found, and the texts between."""

    wanted: Tensor
    texts: list[str]
    found: Tensor


class Correcting:
    """−log P_ψ(x | what the pair wrote for x, and how far its embedding is from that of x); the pair stays as it is."""

    taught = "correction"

    def __init__(self, config: AlignConfig, folder: Path, corpus: Sequence[str | Path], *, writes: bool) -> None:
        self.config, self.folder, self.writes = config, folder, writes
        self.source, self.pair = _pair_to_teach(config, folder)
        corrector = self.pair.corrector or self.pair.add_corrector(text_tokens=config.max_tokens, seed=config.seed)
        self.weights = {**_weights("corrector", corrector.requires_grad_()), **self.pair.llm.correction_weights()}

    def prepare(self, number: int, chunk: Chunk) -> Attempts:
        """What the pair writes, sampled anew for every chunk; that of the last chunk is kept on disk."""
        wanted = self.pair.task_model.encode(chunk.texts)
        path = self.folder / "attempts.json"
        key = f"{number}-{_digest(chunk.texts)}"
        texts = read_record(path, belongs_to=key)
        if texts is None:
            texts = self._write(number, wanted)
            if self.writes:
                write_record(path, texts, belongs_to=key)
        return Attempts(wanted, texts, self.pair.task_model.encode(texts))

    def _write(self, number: int, wanted: Tensor) -> list[str]:
        sampling = Sampling(max_tokens=self.config.max_tokens)
        stream = row_stream(self.config.seed, number)
        uniforms = stream.random((len(wanted), sampling.max_tokens))
        return self.pair.invert(wanted, sampling, uniforms)

    def backward(self, chunk: Chunk, prepared: Attempts, rows: np.ndarray, tokens: int, batch: int) -> Tensor:
        """See :class:`Lesson`."""
        at = torch.from_numpy(rows)
        with self.pair.llm.correcting(learning=True):
            wanted = prepared.wanted[at]
            soft = self.pair.correction(
                self.pair.adaptor(wanted.to(self.config.device)), wanted, prepared.found[at],
                [prepared.texts[row] for row in rows],
            )  # fmt: skip
            generation = self.pair.llm.nll(soft, [chunk.targets[row] for row in rows]).sum() / tokens
            generation.backward()  # type: ignore[no-untyped-call]
        return torch.stack([generation, torch.zeros_like(generation)]).detach().float()

    def validate(self, texts: Sequence[str]) -> dict[str, float]:
        """Scores of greedy texts after one correction, each kept if it is nearer; and the cosine before."""
        wanted = self.pair.task_model.encode(texts)
        before = self.pair.invert(wanted, dataclasses.replace(GREEDY, max_tokens=self.config.max_tokens))
        found = self.pair.task_model.encode(before)
        head, self.pair.word_head = self.pair.word_head, None  # it corrects too, and would hide what was learnt
        try:
            after, reread = self.pair.correct(wanted, before, found, steps=1, max_tokens=self.config.max_tokens)
        finally:
            self.pair.word_head = head
        cosine = nn.functional.cosine_similarity(found, wanted, dim=-1).mean().item()
        return {"cosine_before": cosine, **reconstruction.score(after, texts, reread, wanted)}

    def save(self, folder: Path) -> None:
        """Write the pair that was given, and the corrector."""
        copy_pair(self.source, folder)
        self.pair.save_corrector(folder)


@dataclasses.dataclass(frozen=True)
class Mixes:
    """Embeddings [n, d] of a chunk, the row that each is mixed with, and its own share λ [n, 1]; 1 leaves it alone."""

    embeddings: Tensor
    other: np.ndarray
    lam: Tensor


class Wording:
    """Cross-entropy of which tokens a sentence holds, by the word head; the pair itself stays as it is.

    Mixes can be taught too (``--mixed``): the head will be asked about them. What that is worth is in docs/log.md.
    """

    taught = "words"

    def __init__(self, config: AlignConfig, folder: Path, corpus: Sequence[str | Path], *, writes: bool) -> None:
        self.config, self.folder, self.writes = config, folder, writes
        self.source, self.pair = _pair_to_teach(config, folder)
        if self.pair.word_head is None:
            llm, wordless = self.pair.llm, self.pair.llm.wordless()
            first = config.validation_rows if config.validation is None else 0
            counted = islice(iter_texts(corpus, config.text_column), first, first + COUNTED)
            targets = (
                llm.targets(varied(texts, config.lower, [config.seed, number]), config.max_tokens)  # as they are taught
                for number, texts in enumerate(in_lists(counted, config.chunk))
            )
            self.pair.word_head = WordHead.for_texts(
                ({*ids} - wordless for part in targets for ids in part),
                embedding_dim=self.pair.task_model.dim, vocabulary=llm.vocabulary, seed=config.seed,
            )  # fmt: skip
        self.head = self.pair.word_head.to(config.device)
        self.weights = _weights("words", self.head)

    def prepare(self, number: int, chunk: Chunk) -> Mixes:
        """Embeddings, kept on disk as they are the same in every pass, and with what this pass mixes each of them."""
        embeddings = kept_embeddings(self.pair.task_model, chunk.texts, self.folder, writes=self.writes)
        rng = np.random.default_rng([self.config.seed, number, 4])
        other, lam = rng.permutation(len(embeddings)), rng.random((len(embeddings), 1))
        lam[rng.random(len(lam)) >= self.config.mixed] = 1.0
        return Mixes(embeddings, other, torch.from_numpy(lam.astype(np.float32)))

    def backward(self, chunk: Chunk, prepared: Mixes, rows: np.ndarray, tokens: int, batch: int) -> Tensor:
        """See :class:`Lesson`. A mix of two sentences holds the words of each with its share of probability."""
        embeddings, present = self._shown(chunk, prepared, rows)
        if self.config.mixed:
            lam = prepared.lam[torch.from_numpy(rows)].to(self.config.device)
            others = self._shown(chunk, prepared, prepared.other[rows])
            embeddings, present = (
                lam * mine + (1 - lam) * theirs for mine, theirs in zip((embeddings, present), others, strict=True)
            )
        loss = self.head.loss(embeddings, present).sum() / batch
        loss.backward()  # type: ignore[no-untyped-call]
        return torch.stack([loss, torch.zeros_like(loss)]).detach().float()

    def _shown(self, chunk: Chunk, prepared: Mixes, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Embeddings [n, d] of rows, and which words they hold [n, W]."""
        embeddings = prepared.embeddings[torch.from_numpy(rows)].to(self.config.device)
        return embeddings, self.head.present([chunk.targets[row] for row in rows])

    @torch.no_grad()
    def validate(self, texts: Sequence[str]) -> dict[str, float]:
        """Loss of the head in nats a sentence, and scores of what the pair then writes greedily."""
        embeddings = self.pair.task_model.encode(texts).to(self.config.device)
        targets, losses = self.pair.llm.targets(texts, self.config.max_tokens), []
        for at in range(0, len(texts), BATCH):
            part = slice(at, at + BATCH)
            losses += self.head.loss(embeddings[part], self.head.present(targets[part])).tolist()
        return {**evaluate_pair(self.pair, texts, self.config.max_tokens), "loss": float(np.mean(losses))}

    def save(self, folder: Path) -> None:
        """Write the pair that was given, and the word head."""
        copy_pair(self.source, folder)
        self.pair.save_word_head(folder)


Lessons = type[Inverting] | type[Correcting] | type[Wording]
LESSONS: dict[str, Lessons] = {"invert": Inverting, "correct": Correcting, "words": Wording}


def started_from(start: str) -> Path:
    """Where the pair lies that ``--start`` names."""
    return pair_folder(None if start == DEFAULT_PAIR else start)


def _pair_to_teach(config: AlignConfig, folder: Path) -> tuple[Path, Pair]:
    """The pair to teach and its folder, once options that say what another pair looks like are refused."""
    if not config.start:
        raise InputError(f"--teach {config.teach} needs a trained pair: give its folder with --start")
    for name in SHAPE_OPTIONS:
        if _is_given(config, name):
            raise InputError(f"--teach {config.teach}: {name} is that of the pair in --start; leave the option out")
    source = started_from(config.start)
    if source.resolve() == folder.resolve():
        raise InputError(f"--teach {config.teach}: {folder} holds the pair to start from; choose another output")
    paths = {name: getattr(config, name) for name in ("encoder", "llm") if _is_given(config, name)}
    return source, Pair.load(source, device=config.device, dtype=config.dtype, **paths)


def kept_embeddings(encoder: TaskModel, texts: Sequence[str], folder: Path, *, writes: bool) -> Tensor:
    """Embeddings [n, d] of the texts of a chunk, kept in the folder of the run for the next pass."""
    path = folder / "embeddings" / (_digest(texts) + ".safetensors")
    if path.exists():
        with contextlib.suppress(InputError):  # damaged: made again
            return read_tensors(path)[0]["embeddings"].float()
    embeddings = encoder.encode(texts).half()
    if writes:
        path.parent.mkdir(exist_ok=True)
        write_tensors(path, {"embeddings": embeddings})
    # as a later pass will read it, so that an interrupted run continues with the same numbers
    return embeddings.float()


def _weights(part: str, module: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable weights of a module."""
    return {f"{part}.{name}": weight for name, weight in module.named_parameters() if weight.requires_grad}


def _is_given(config: AlignConfig, name: str) -> bool:
    """Whether an option differs from its default."""
    return bool(getattr(config, name) != type(config).__dataclass_fields__[name].default)


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:24]


@torch.no_grad()
def evaluate_pair(
    pair: Pair, texts: Sequence[str], max_tokens: int = 64, *, word_weight: float = WORD_WEIGHT
) -> dict[str, float]:
    """Teacher-forced loss and greedy reconstruction scores of a pair on texts."""
    wanted = pair.task_model.encode(texts)
    order = np.argsort([len(text) for text in texts], kind="stable")
    written, nll, count = [""] * len(texts), 0.0, 0
    sampling = dataclasses.replace(GREEDY, max_tokens=max_tokens)
    for first in range(0, len(order), BATCH):
        rows = order[first : first + BATCH]
        embeddings = wanted[torch.from_numpy(rows)]
        soft = pair.adaptor(embeddings.to(pair.llm.device))
        targets = pair.llm.targets([texts[i] for i in rows], max_tokens)
        nll, count = nll + pair.llm.nll(soft, targets).sum().item(), count + sum(map(len, targets))
        for row, text in zip(rows, pair.invert(embeddings, sampling, word_weight=word_weight), strict=True):
            written[row] = text
    return {"loss": nll / count, **reconstruction.score(written, texts, pair.task_model.encode(written), wanted)}
