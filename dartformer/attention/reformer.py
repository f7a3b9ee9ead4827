"""Reformer: softmax among tokens that a random hash puts into one bucket."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from dartformer.attention.base import (
    Cache,
    Cost,
    Inputs,
    Params,
    Shape,
    Spelled,
    Traits,
    accept,
    head_keys,
    kv_cache_bytes,
    positive,
    zero_invalid,
)
from dartformer.attention.decoding import (
    EVERYTHING,
    Tokens,
    accept_cache,
    accept_prefill,
    accept_room,
    in_order,
    in_place,
    repeated,
)
from dartformer.attention.slices import by_heads
from dartformer.errors import InputError
from dartformer.kernels.cached import grouped_scores, grouped_values, row_bias, write
from dartformer.kernels.hashed import hashed_attention, shared_attention, unit
from dartformer.kernels.softmax import FLOOR, MASKED, distance_bias, wide


@dataclass(frozen=True, repr=False)
class Reformer(Spelled):
    """LSH attention: y_i = sum_j softmax_j(q_i . k_j / sqrt(D)) v_j over j in i's buckets.

    k = q / |q|, and i itself is left out. A round hashes h(x) = argmax [x R; -x R] with random
    rotations R. Tokens are sorted by bucket and position and cut into chunks, and i sees those of
    its bucket in its chunk and the one before. Rounds are combined by the logarithms of their sums:
    this is one softmax in which j counts once for every round that shows it.

    Paper: Kitaev et al. 2020, arXiv:2001.04451, equations 4 to 7.
    Own parameters: none; queries serve as keys, and k is not read.
    Cost: O(hashes N (chunk + buckets) D) time, with a sort, O(hashes N chunk) memory; no N x N
      array. The hash itself has no gradient.
    Randomness: the rotations of a head depend on its key in `Inputs.head_keys` alone.
    Masks: padding is sorted behind all buckets and seen by none. A token sees itself only if it
      sees no other in any round. An example of at most two chunks of valid tokens is attention over
      all of them, whatever their buckets. Causal: i sees the last `chunk` tokens of its bucket
      before it, however few tokens there are.
    Deviations: the paper's causal form cuts chunks among all tokens, and later tokens move their
      edges and change what earlier ones see. Here nothing depends on what comes later. Chunks do
      not wrap around the end. `buckets` is a field, where the paper takes N / chunk: with that, a
      bucket fills a chunk.

    Attributes:
      buckets: an even number of at least 2.
      hashes: rounds.
      chunk: tokens.
    """

    buckets: int = 16
    hashes: int = 2
    chunk: int = 16

    traits: ClassVar[Traits] = Traits(
        summary="softmax within buckets of a random hash",
        paper="Kitaev et al. 2020, arXiv:2001.04451",
        causal=True,
        reads=frozenset("qv"),
        stochastic=True,
        positions=frozenset({"alibi"}),
        decodes=True,
        dropout="weights",
    )

    def __post_init__(self) -> None:
        positive(self, buckets=self.buckets, hashes=self.hashes, chunk=self.chunk)
        if self.buckets % 2:
            raise InputError(f"reformer: buckets must be an even number, got {self.buckets}.")

    def init(self, key: Array, shape: Shape) -> Params:
        """No parameters."""
        return {}

    def __call__(
        self,
        params: Params,
        inputs: Inputs,
        *,
        causal: bool = False,
        train: bool = False,
        key: Array | None = None,
    ) -> Array:
        """See `Attention`; `inputs.head_keys` may be None where all tokens see one another."""
        accept(self, inputs, causal=causal)

        def some(params: Params, inputs: Inputs, key: Array | None) -> Array:
            return self._attend(params, inputs, causal, inputs.rate(train), key)

        return by_heads(some, params, inputs, key, on_cpu=2**20)

    def _attend(
        self, params: Params, inputs: Inputs, causal: bool, dropout: float, key: Array | None
    ) -> Array:
        """The output of all heads of `inputs` at once."""
        if self.sees_all(inputs.q.shape[1], causal=causal):
            out = shared_attention(
                inputs.q,
                inputs.v,
                valid=inputs.valid,
                slopes=inputs.slopes,
                dropout=dropout,
                key=key,
            )
            return zero_invalid(out, inputs.mask)

        bucket, few = self.hashed(inputs, causal=causal)
        out = hashed_attention(
            inputs.q,
            inputs.v,
            bucket,
            count=self.buckets,
            chunk=self.chunk,
            causal=causal,
            few=few,
            slopes=inputs.slopes,
            dropout=dropout,
            key=key,
            target=inputs.target,
        )
        return zero_invalid(out, inputs.mask)

    def sees_all(self, length: int, *, causal: bool = False) -> bool:
        """Whether so few tokens all see one another."""
        return not causal and length <= 2 * self.chunk

    def hashed(self, inputs: Inputs, *, causal: bool = False) -> tuple[Array, Array | None]:
        """Buckets `[B, H, hashes, N]`, and which examples `[B]` are few tokens, of one bucket.

        The bucket of padding is `buckets`.

        Raises:
          InputError: `inputs.head_keys` is None.
        """
        # The hash has no gradient.
        q = jax.lax.stop_gradient(inputs.q).astype(wide(inputs.q))
        keys = head_keys(self, inputs)
        r = rotations(keys, self.hashes, q.shape[-1], self.buckets)
        # Angular LSH, section 2 of the paper: h(x) = argmax [x R; -x R].
        turned = jnp.einsum("bnhd,hrdm->bhrnm", q, r)  # [B, H, hashes, N, buckets / 2]
        # argmax [x; -x]: that of |x|, and the sign there.
        largest = jnp.argmax(abs(turned), axis=-1).astype(jnp.int32)
        positive = turned.max(-1) >= -turned.min(-1)
        sign = jnp.where(positive, 0, self.buckets // 2)
        bucket = largest + sign.astype(jnp.int32)
        if inputs.valid is None:
            return bucket, None
        few = None
        if not causal:
            few = inputs.valid.sum(1) <= 2 * self.chunk
            # One bucket for all tokens: they see one another, as they do without padding.
            bucket = jnp.where(few[:, None, None, None], 0, bucket)
        return jnp.where(inputs.valid[:, None, None], bucket, self.buckets), few

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """The softmax of all scores, times the rounds in which each key is seen, `[B, H, N, N]`."""
        accept(self, inputs, causal=causal)
        length, keep = inputs.q.shape[1], inputs.mask
        different = ~jnp.eye(length, dtype=bool)
        times = self._times(inputs, causal) * (keep[:, None, None, :] & different)
        dots = jnp.einsum("bnhd,bkhd->bhnk", inputs.q, unit(inputs.q))
        i = jnp.arange(length)
        distance = i - i[:, None]
        scores = distance_bias(dots * inputs.q.shape[-1] ** -0.5, inputs.slopes, distance)
        visible = times > 0
        top = jnp.where(visible, scores, -jnp.inf).max(-1, keepdims=True)
        top = jax.lax.stop_gradient(top)
        top = jnp.where(top == -jnp.inf, 0, top)  # a row that sees no key
        rows = times * jnp.exp(jnp.where(visible, scores - top, 0))
        total = rows.sum(-1, keepdims=True)
        rows = jnp.where(total == 0, jnp.eye(length), rows / jnp.where(total == 0, 1, total))
        return rows * keep[:, None, :, None]

    def _times(self, inputs: Inputs, causal: bool) -> Array:
        """In how many rounds each query sees each key, `[B, H, N, N]`, by counting: no sort."""
        length = inputs.q.shape[1]
        if self.sees_all(length, causal=causal):
            return jnp.ones((1, 1, length, length))
        bucket, few = self.hashed(inputs, causal=causal)
        query_bucket, key_bucket = bucket[..., None], bucket[..., None, :]
        same = key_bucket == query_bucket  # [B, H, hashes, N, N]
        i = jnp.arange(length)
        # Keys before the query in the order; their number is its place there.
        ahead = (key_bucket < query_bucket) | (same & (i < i[:, None]))
        rank = ahead.sum(-1)
        if causal:
            back = rank[..., None] - rank[..., None, :]
            in_reach = (back > 0) & (back <= self.chunk)
        else:
            chunk = rank // self.chunk
            back = chunk[..., None] - chunk[..., None, :]
            in_reach = (back == 0) | (back == 1)
            if few is not None:
                in_reach = in_reach | few[:, None, None, None, None]
        return (in_reach & same).sum(2)

    def init_cache(
        self, shape: Shape, dtype: DTypeLike = jnp.float32, head_keys: Array | None = None
    ) -> Cache:
        """Queries, which serve as keys, `[B, H, N, D]`, values, and buckets `[B, H, N, hashes]`."""
        rows = (shape.batch, shape.heads, shape.length)
        values = (shape.batch, shape.kept_heads, shape.length, shape.head_dim)
        return {
            "q": jnp.zeros((*rows, shape.head_dim), dtype),
            "v": jnp.zeros(values, dtype),
            "bucket": jnp.zeros((*rows, self.hashes), jnp.int32),
        }

    def prefill(self, params: Params, inputs: Inputs, cache: Cache) -> tuple[Array, Cache]:
        """See `Decoder`."""
        accept_prefill(self, inputs)
        tokens = in_order(inputs)
        out = self(params, repeated(tokens.inputs), causal=True)
        return in_place(out, tokens, inputs), self._continued(tokens, cache)

    def step(self, params: Params, inputs: Inputs, cache: Cache) -> tuple[Array, Cache]:
        """See `Decoder`."""
        accept(self, inputs, causal=True)
        tokens = in_order(inputs)
        cache = self._continued(tokens, cache)
        q, new = tokens.inputs.q, tokens.new
        position = EVERYTHING.held(new.stop, cache["q"].shape[2])[:, None, None]  # [B, 1, 1, S]
        query = new.position[:, None, :, None]
        times = self._rounds(tokens, cache, (position >= 0) & (position < query))
        keys = unit(cache["q"].astype(wide(q)))
        scores = row_bias(grouped_scores(q, keys, ()), inputs.slopes, position - query)
        scores = jnp.where(times > 0, scores, MASKED)
        top = jnp.maximum(scores.max(-1, keepdims=True), FLOOR)
        rows = times * jnp.exp(scores - top)
        total = rows.sum(-1, keepdims=True)  # [B, H, T, 1]
        mean = grouped_values(rows / jnp.where(total == 0, 1, total), cache["v"], inputs.groups)
        # A token that shares no bucket with an earlier one sees itself.
        alone = repeated(tokens.inputs).v.astype(mean.dtype)
        out = jnp.where(total.swapaxes(1, 2) == 0, alone, mean)
        return in_place(out, tokens, inputs), cache

    def _continued(self, tokens: Tokens, cache: Cache) -> Cache:
        """The cache with the new tokens."""
        q, v = tokens.inputs.q, tokens.inputs.v
        batch, _, heads, width = q.shape
        expected = {
            "q": (batch, heads, -1, width),
            "v": (batch, v.shape[2], -1, width),
            "bucket": (batch, heads, -1, self.hashes),
        }
        accept_cache(self, cache, expected)
        accept_room(self, tokens.inputs, cache["q"].shape[2])
        bucket, _ = self.hashed(tokens.inputs, causal=True)  # [B, H, hashes, T]
        arrays = {"q": q, "v": v, "bucket": bucket.transpose(0, 3, 1, 2)}
        written = {}
        for name, x in arrays.items():
            written[name] = write(cache[name], x, tokens.new, EVERYTHING)
        return written

    def _rounds(self, tokens: Tokens, cache: Cache, earlier: Array) -> Array:
        """In how many rounds each new token sees each cached one, `[B, H, T, S]`."""
        bucket, _ = self.hashed(tokens.inputs, causal=True)
        queries = bucket.transpose(0, 1, 3, 2)[:, :, :, None]  # [B, H, T, 1, hashes]
        same = (cache["bucket"][:, :, None] == queries) & earlier[..., None]
        # Counted from the newest: the last `chunk` of a bucket are in reach.
        back = jax.lax.cumsum(same.astype(jnp.int32), axis=3, reverse=True)
        return (same & (back <= self.chunk)).sum(-1)

    def cost(self, shape: Shape) -> Cost:
        """The hash, and two chunks of keys for each query in each round; all tokens if few."""
        heads, width = shape.batch * shape.heads, shape.head_dim
        scores = shape.length**2
        hashing = 0
        if not self.sees_all(shape.length):
            padded = shape.length + -shape.length % self.chunk
            scores = self.hashes * padded * 2 * self.chunk
            hashing = self.hashes * padded * (self.buckets * (width + 1) + 6 * width)
        numbers = 2 * scores + self.hashes * shape.length * 3 * width
        return Cost(
            flops=heads * (scores * (4 * width + 6) + hashing),
            parameters=0,
            activation_bytes=heads * numbers * shape.wide_itemsize,
            # Queries of each head, values as others keep them, and a bucket for each round.
            state_bytes=heads * shape.length * (width * shape.itemsize + 4 * self.hashes)
            + kv_cache_bytes(shape, shape.length) // 2,
        )


def rotations(keys: Array, hashes: int, width: int, buckets: int) -> Array:
    """Random rotations `[H, hashes, width, buckets / 2]`, from each head's key alone.

    Standard normal in float32.
    """

    def one_head(key: Array) -> Array:
        return jax.random.normal(key, (hashes, width, buckets // 2), jnp.float32)

    return jax.vmap(one_head)(keys)
