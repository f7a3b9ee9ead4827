"""Generate: continue texts token by token, with a trained or a loaded model of a causal task."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dartformer.attention.base import Cache
from dartformer.errors import InputError, brief
from dartformer.export.load import Served, device_of, load
from dartformer.models.decode import (
    Decoding,
    decoding,
    require_generation,
)
from dartformer.models.layerwise import repeats_layers
from dartformer.models.sizes import TransformerConfig
from dartformer.models.transformer import Weights
from dartformer.placement.evaluate import placed_model
from dartformer.placement.study import is_placement
from dartformer.pretrained import Pretrained, load_pretrained
from dartformer.pretrained.folder import is_checkpoint
from dartformer.pretrained.texts import Texts
from dartformer.space.genotype import Genotype
from dartformer.stages.retrain import Model

SHORTEST = 16
"""Prompts are padded to a power of two from here on, so that few programs are compiled."""

UNFINISHED = "\ufffd"
"""How a text ends whose last character lacks bytes."""


@runtime_checkable
class Continues(Protocol):
    """A task whose texts can be continued."""

    @property
    def special(self) -> tuple[int, ...]:
        """Token ids that stand for no text, and are never generated: padding, the unknown."""
        ...

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end a text."""
        ...

    def prompt(self, text: str) -> list[int]:
        """Token ids of a whole text, however long."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids."""
        ...


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
      temperature: 0 takes the most probable token; higher ones draw from flatter probabilities.
      top_k: draw from the k most probable tokens alone; 0 for all.
      top_p: draw from the fewest tokens whose probabilities sum to p at least (Holtzman et al.
        2020, arXiv:1904.09751); 1 for all.
      seed: of the draws. Each row of a batch draws for itself, by its number.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature must be at least 0, got {self.temperature!r}.")
        if self.top_k < 0:
            raise InputError(f"top_k must be at least 0, got {self.top_k!r}.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, got {self.top_p!r}.")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed must be at least 0 and below 2^32, got {self.seed!r}.")


class Piece(NamedTuple):
    """Text that was added to a row.

    Attributes:
      row: number of the prompt.
      text: what follows what came before; may be empty in the last piece.
      finish: "" while the row goes on; then "stop" where a stop text came, or "length".
    """

    row: int
    text: str
    finish: str = ""


class Continuation(NamedTuple):
    """What was generated after a prompt.

    Attributes:
      prompt: the text that was continued.
      text: the continuation, without the stop text.
      tokens: how many tokens were generated.
      finish: "stop" or "length".
    """

    prompt: str
    text: str
    tokens: int
    finish: str


class Source(NamedTuple):
    """A model that continues texts.

    Attributes:
      shape, genotype, weights: of the model.
      task: texts to token ids and back.
      ends: tokens that end a text.
    """

    shape: TransformerConfig
    genotype: Genotype
    weights: Weights
    task: Continues
    ends: tuple[int, ...] = ()

    @classmethod
    def of(cls, model: Model | Served | Pretrained) -> "Source":
        """The parts of a model; raises `InputError` where its task has no texts."""
        if isinstance(model, Pretrained):
            # Before the tokenizer is read, which an encoder may have too.
            require_generation(model.config, model.genotype)
            texts = model.texts
            return cls(model.config, model.genotype, model.weights, texts, texts.ends)
        if isinstance(model, Served):
            model = model.model
        require_generation(model.shape, model.genotype)
        task = _continued_task(model)
        return cls(model.shape, model.genotype, model.weights, task, task.ends)


def open_model(folder: str | Path, device: str | None = None) -> Served | Pretrained:
    """The model of an export, of a checkpoint of Hugging Face, or of a placement in one."""
    folder = Path(folder)
    if is_placement(folder):
        model = placed_model(folder)
    elif is_checkpoint(folder):
        model = load_pretrained(folder)
    else:
        return load(folder, device)
    return replace(model, weights=jax.device_put(model.weights, device_of(device)))


def generate(
    model: Model | Served | Pretrained | str | Path,
    prompts: str | Sequence[str],
    *,
    max_tokens: int | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: str | Sequence[str] = (),
    chat: bool = False,
    on_text: Callable[[Piece], None] | None = None,
) -> list[Continuation]:
    """Continue one or several texts; all rows of the batch advance together.

    Args:
      model: what `df.retrain`, `df.load` or `df.load_pretrained` returned, or the folder of an
        export or of a checkpoint.
      prompts: one text or several.
      max_tokens: the most new tokens of each; None: as many as the model's length leaves.
      temperature, top_k, top_p, seed: see `Sampling`; by default the most probable tokens.
      stop: texts at which a row ends; they are left out.
      chat: take each prompt as a message to which the model answers, by the checkpoint's chat
        template.
      on_text: is called with each `Piece` as it is generated.

    Raises:
      InputError: the model cannot continue a text; a prompt is empty or too long; an option is out
        of range; or the model's tokens cannot spell a stop text.
    """
    if isinstance(prompts, str):
        prompts = [prompts]
    writer = Writer(model, prompts, stop, max_tokens, chat=chat)
    for piece in writer.pieces(Sampling(temperature, top_k, top_p, seed)):
        if on_text is not None:
            on_text(piece)
    return writer.continuations()


class Writer:
    """A batch of texts that are continued together."""

    def __init__(
        self,
        model: Model | Served | Pretrained | str | Path,
        prompts: Sequence[str],
        stop: str | Sequence[str] = (),
        max_tokens: int | None = None,
        *,
        chat: bool = False,
    ) -> None:
        if isinstance(model, str | Path):
            model = open_model(model)
        self.model = source = Source.of(model)
        self.run = _programs(source.shape, source.genotype)
        self.task = source.task
        self.prompts = list(prompts)
        self.stops = _stops(self.task, stop)
        encode: Callable[[str], list[int]] = self.task.prompt
        if chat:
            encode = _chat_of(self.task)
        self.ids = _prompt_ids(encode, self.prompts, source.shape)
        self.limit = _limit(self.ids, max_tokens, source.shape.length)
        count = len(self.prompts)
        self.new: list[list[int]] = [[] for _ in range(count)]
        self.texts = [""] * count
        self.shown = [0] * count  # characters that `pieces` has given
        self.finish = [""] * count

    def continuations(self) -> list[Continuation]:
        """What was generated so far."""
        rows = zip(self.prompts, self.texts, self.new, self.finish, strict=True)
        results = []
        for prompt, text, ids, finish in rows:
            results.append(Continuation(prompt, text, len(ids), finish))
        return results

    def pieces(self, sampling: Sampling) -> Iterator[Piece]:
        """The texts as they are generated."""
        if not self.ids:
            return
        tokens, valid = _padded(self.ids, self.model.shape.length)
        longest = max(map(len, self.ids)) + self.limit
        cache = self.run.init_cache(len(self.ids), _rounded(longest, self.model.shape.length))
        draw = _Draw.of(sampling, self.task, self.model.shape)
        weights = self.model.weights
        chosen, cache = self.run.first(weights, tokens, valid, cache, draw, sampling.top_k)
        active = np.ones(len(self.ids), bool)
        for number in range(1, self.limit + 1):
            # A copy on the host waits for the step, and only then can its text be shown.
            for row, token in enumerate(np.asarray(chosen).tolist()):
                if active[row]:
                    yield self._added(row, token, number == self.limit)
                    active[row] = not self.finish[row]
            if not active.any():
                return
            chosen, cache = self.run.next(
                weights, chosen, jnp.asarray(active), cache, draw, sampling.top_k, number
            )

    def _added(self, row: int, token: int, last: bool) -> Piece:
        """The text that a token adds to a row, and whether the row ends."""
        self.new[row].append(token)
        text = self._decoded(row)
        finish = ""
        if last:
            finish = "length"
        if token in self.model.ends:
            finish = "stop"
        for stop in self.stops:
            place = text.find(stop)
            if place >= 0:
                text, finish = text[:place], "stop"
        self.texts[row], self.finish[row] = text, finish
        settled = len(text)
        if not finish:
            settled = _settled(text, self.stops)
        piece = text[self.shown[row] : settled]
        self.shown[row] = max(self.shown[row], settled)
        return Piece(row, piece, finish)

    def _decoded(self, row: int) -> str:
        """The new text of a row: what its tokens add to that of the prompt."""
        before = self.task.decode(self.ids[row])
        together = self.task.decode([*self.ids[row], *self.new[row]])
        # A token may be spelled differently at the beginning of a text, so both are decoded.
        if together.startswith(before):
            return together[len(before) :]
        return self.task.decode(self.new[row])


def _continued_task(model: Model) -> Continues:
    task = model.task
    if not isinstance(task, Continues):
        raise InputError(
            f"the task of this model, {type(task).__name__.lower()}, has no text to continue. Use "
            f"a model of the task language."
        )
    return task


def _stops(task: Continues, stop: str | Sequence[str]) -> list[str]:
    """The stop texts; `InputError` for one that can never come."""
    if isinstance(stop, str):
        stop = [stop]
    stops = list(stop)
    for text in stops:
        if not text:
            raise InputError("a stop text must not be empty.")
        if task.decode(task.prompt(text)) != text:
            raise InputError(f"the model's tokens cannot spell the stop text {brief(text)}.")
    return stops


def _chat_of(task: Continues) -> Callable[[str], list[int]]:
    """The tokens of a message; raises `InputError` for a model that does not chat."""
    if not isinstance(task, Texts):
        raise InputError(
            "chat needs a checkpoint with a chat template, and this model has none. Leave it out."
        )
    return task.chat


def _prompt_ids(
    encode: Callable[[str], list[int]], prompts: Sequence[str], shape: TransformerConfig
) -> list[list[int]]:
    """The tokens of the prompts."""
    listed, length = [], shape.length
    for number, prompt in enumerate(prompts, 1):
        name = "the prompt"
        if len(prompts) > 1:
            name = f"prompt {number}"
        if not isinstance(prompt, str) or not prompt:
            raise InputError(f"{name} is empty. Give at least one character.")
        ids = encode(prompt)
        if not ids:
            raise InputError(f"{name} has no tokens. Give another text.")
        # JAX would read the last row of the embeddings in place of one that is missing.
        if max(ids) >= shape.vocabulary:
            raise InputError(
                f"{name} has the token {max(ids)}, and the model has {shape.vocabulary}. Its "
                f"tokenizer is of another model."
            )
        if len(ids) >= length:
            raise InputError(
                f"{name} has {len(ids)} tokens, and the model has {length} positions, of which a "
                f"new token needs one. Shorten it to {length - 1} tokens."
            )
        listed.append(ids)
    return listed


def _limit(ids: Sequence[Sequence[int]], max_tokens: int | None, length: int) -> int:
    """How many tokens each row may get."""
    longest = max(map(len, ids), default=0)
    room = length - longest
    if max_tokens is None:
        return room
    if max_tokens < 1:
        raise InputError(f"max_tokens must be at least 1, got {max_tokens}.")
    if max_tokens > room:
        raise InputError(
            f"a prompt of {longest} tokens and {max_tokens} new ones do not fit into the model's "
            f"{length} positions. Use max_tokens={room}, or a shorter prompt."
        )
    return max_tokens


def _settled(text: str, stops: Sequence[str]) -> int:
    """How many characters no later token can change or cut."""
    settled = len(text)
    while settled and text[settled - 1] == UNFINISHED:
        settled -= 1
    for stop in stops:
        for part in range(len(stop) - 1, 0, -1):
            if text.endswith(stop[:part]):
                settled = min(settled, len(text) - part)
                break
    return settled


def _rounded(tokens: int, length: int) -> int:
    """A power of two that `tokens` fit in, or the model's length where that is less."""
    return min(length, max(SHORTEST, 1 << (tokens - 1).bit_length()))


def _padded(ids: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and valid `[B, N]` of prompts, with padding at the end."""
    longest = max(map(len, ids))
    width = _rounded(longest, length)
    tokens = np.zeros((len(ids), width), np.int32)
    valid = np.zeros((len(ids), width), bool)
    for row, prompt in enumerate(ids):
        tokens[row, : len(prompt)] = prompt
        valid[row, : len(prompt)] = True
    return tokens, valid


class _Draw(NamedTuple):
    """What the programs need to choose a token.

    Attributes:
      key: of the seed.
      temperature, top_p: as in `Sampling`.
      banned: which tokens are never chosen, `[C]`.
    """

    key: Array
    temperature: Array
    top_p: Array
    banned: Array

    @classmethod
    def of(cls, sampling: Sampling, task: Continues, shape: TransformerConfig) -> "_Draw":
        banned = np.zeros(shape.classes, bool)
        banned[list(task.special)] = True
        return cls(
            jax.random.key(sampling.seed),
            jnp.float32(sampling.temperature),
            jnp.float32(sampling.top_p),
            jnp.asarray(banned),
        )


def choose(logits: Array, draw: _Draw, top_k: int, number: Array | int) -> Array:
    """The next token of each row, `[B]`, from logits `[B, C]`; `number` is that of the token."""
    logits = jnp.where(draw.banned, -jnp.inf, logits)
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def drawn() -> Array:
        # The largest is 0, so that a tiny temperature overflows to -inf alone.
        scaled = (logits - jnp.max(logits, axis=-1, keepdims=True)) / draw.temperature
        if top_k:
            kept = min(top_k, logits.shape[-1])
            least = jax.lax.top_k(scaled, kept)[0][:, -1:]
            scaled = jnp.where(scaled < least, -jnp.inf, scaled)
        order = jnp.argsort(-scaled, axis=-1)
        probabilities = jax.nn.softmax(jnp.take_along_axis(scaled, order, axis=-1), axis=-1)
        # Those before a token, in order, do not reach p yet; the first one is always kept.
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        inside = jnp.where(before < draw.top_p, jnp.take_along_axis(scaled, order, -1), -jnp.inf)
        keys = jax.vmap(lambda row: jax.random.fold_in(draw.key, row))(jnp.arange(len(logits)))
        keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
        rank = jax.vmap(jax.random.categorical)(keys, inside)
        return jnp.take_along_axis(order, rank[:, None], axis=-1)[:, 0].astype(jnp.int32)

    return jax.lax.cond(draw.temperature > 0, drawn, lambda: best)


class _Programs(NamedTuple):
    """The compiled parts of a generation."""

    init_cache: Callable[[int, int], Cache]
    first: Callable[..., tuple[Array, Cache]]
    next: Callable[..., tuple[Array, Cache]]


# Kept, so that a second call with the same model compiles nothing.
@functools.lru_cache(maxsize=8)
def _programs(shape: TransformerConfig, genotype: Genotype) -> _Programs:
    """The programs of a model; raises `InputError` where it cannot continue a text."""
    by_layer = repeats_layers(shape, genotype)
    run: Decoding = decoding(shape, genotype, by_layer=by_layer)
    dtype = jnp.dtype(shape.dtype)
    chosen: Callable[..., Array] = choose
    if by_layer:
        chosen = jax.jit(choose, static_argnums=2)

    def first(
        weights: Weights, tokens: Array, valid: Array, cache: Cache, draw: Any, top_k: int
    ) -> tuple[Array, Cache]:
        logits, cache = run.prefill(weights, tokens, valid, cache)
        return chosen(logits, draw, top_k, 0), cache

    def following(
        weights: Weights,
        tokens: Array,
        active: Array,
        cache: Cache,
        draw: Any,
        top_k: int,
        number: Array,
    ) -> tuple[Array, Cache]:
        logits, cache = run.step(weights, tokens[:, None], active[:, None], cache)
        return chosen(logits, draw, top_k, number), cache

    init_cache = jax.jit(
        lambda rows, length: run.init_cache(rows, length, dtype), static_argnums=(0, 1)
    )
    if by_layer:
        return _Programs(init_cache, first, following)
    # The cache is given away: a step writes into it, and does not copy it.
    return _Programs(
        init_cache,
        jax.jit(first, static_argnums=5, donate_argnums=3),
        jax.jit(following, static_argnums=5, donate_argnums=3),
    )
