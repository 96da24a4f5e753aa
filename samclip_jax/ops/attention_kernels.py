"""The bodies of the Pallas kernels of attention, for one block of attention_tpu.Plan.

A head is told from its neighbours in the block by zeros: q with the neighbours' channels zeroed
meets all 128 channels of k, which takes the matrix unit no longer than the head's own. (Heads of 80
channels may lie across two columns of 128.)

The relative position comes as further channels, q.Rh and q.Rw against one-hot rows and columns of
the keys. For them q meets a whole table, every distance, and the product is moved along by the
query's own row or column, so that it begins with the first of the keys.

The backward kernel needs nothing but the inputs: it makes the weights again, transposed, so that
three of its products need no other transposition.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128


def forward(refs, plan):
    time = pl.program_id(2)
    _clear(refs)

    def one(i, carry):
        q, k, v = (_flat(refs, plan, name, i) for name in "qkv")
        further = _relative(refs, plan, q, time)
        out = _columns(q)
        for head in range(plan.together):
            at, own = _head(plan, head, len(q))
            query, keys = _query(plan, q[:, at], own, further, head), _keys(refs, k[:, at])
            scores = _product(query, keys, (1, 1))  # [queries, keys]
            weights = jnp.exp(scores - scores.max(1, keepdims=True))
            values = _product(weights.astype(v.dtype), v[:, at], (1, 0))
            _add(out, at, jnp.where(own, values / weights.sum(1, keepdims=True), 0))
        _write(refs["out"], plan, i, 0, jnp.concatenate(out, 1))
        return carry

    jax.lax.fori_loop(0, plan.items, one, None)


def backward(refs, plan):
    time = pl.program_id(2)
    _clear(refs)
    written = [name for name in refs if name in ("d_qkv", "d_q", "d_kv")]
    d_refs = {part: refs[name] for name in written for part in name.removeprefix("d_")}

    @pl.when(time == 0)
    def _():
        for name in ("sum_k", "sum_v"):
            refs[name][...] = jnp.zeros(refs[name].shape, jnp.float32)

    def one(i, carry):
        q, k, v, d_out = (_flat(refs, plan, name, i) for name in ("q", "k", "v", "d_out"))
        further = _relative(refs, plan, q, time)
        d_further = [jnp.zeros(x.shape, jnp.float32) for x in further]
        d_q = _columns(q)
        for head in range(plan.together):
            at, own = _head(plan, head, len(q))
            query, keys = _query(plan, q[:, at], own, further, head), _keys(refs, k[:, at])
            d_values = jnp.where(own, d_out[:, at], 0)
            scores = _product(keys, query, (1, 1))  # [keys, queries]
            weights = jnp.exp(scores - scores.max(0, keepdims=True))
            weights = weights / weights.sum(0, keepdims=True)
            d_weights = _product(v[:, at], d_values, (1, 1))
            d_scores = weights * (d_weights - (weights * d_weights).sum(0, keepdims=True))
            weights, d_scores = weights.astype(v.dtype), d_scores.astype(v.dtype)
            refs["sum_v"][i, :, at] += _product(weights, d_values, (1, 0))
            refs["sum_k"][i, :, at] += _product(d_scores, query[:, : own.shape[1]], (1, 0))
            d_query = _product(d_scores, keys, (0, 0))  # as query
            _add(d_q, at, jnp.where(own, plan.depth**-0.5 * d_query[:, : own.shape[1]], 0))
            if further:
                group, mine = _own(plan, head, len(q))
                d_further[group] += jnp.where(mine, d_query[:, own.shape[1] :], 0)
        _relative_backward(refs, plan, q, d_further, time, d_q)
        _write(d_refs["q"], plan, i, time * plan.chunk, jnp.concatenate(d_q, 1))
        return carry

    @pl.when(time < plan.chunks)
    def _():
        jax.lax.fori_loop(0, plan.items, one, None)

    for when, part in enumerate("kv", plan.chunks):

        @pl.when(time == when)
        def _(part=part):
            for i in range(plan.items):
                _write(d_refs[part], plan, i, 0, refs[f"sum_{part}"][i])


def _clear(refs):
    """Zeros between the rows of tokens, and for the sum over the whole batch."""

    @pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))
    def _():
        for name, ref in refs.items():
            if name.startswith("flat_") or name == "d_tables":
                ref[...] = jnp.zeros(ref.shape, ref.dtype)


def _flat(refs, plan, name, i):
    """Item i of [items, rows, width, lanes] -> [rows * stride, lanes]."""
    ref = refs[name]
    if f"flat_{name}" not in refs:
        return ref[i].reshape(-1, plan.lanes)
    flat = refs[f"flat_{name}"]
    for row in range(ref.shape[1]):
        flat[row * plan.stride : row * plan.stride + ref.shape[2]] = ref[i, row]
    return flat[...]


def _write(ref, plan, i, first, x):
    """x [rows * stride, lanes] into item i of ref, from its row `first` on."""
    rows = x.reshape(-1, plan.stride, plan.lanes)[:, : ref.shape[2]]
    ref[i, pl.ds(first, len(rows))] = rows.astype(ref.dtype)


def _columns(like):
    """Zeros, float32, as a list of arrays of LANES channels."""
    return [jnp.zeros((len(like), LANES), jnp.float32)] * (like.shape[1] // LANES)


def _add(columns, at, x):
    """Adds x [tokens, channels] to the columns of the channels `at`."""
    for i, column in enumerate(range(at.start // LANES, at.stop // LANES)):
        columns[column] += x[:, i * LANES : (i + 1) * LANES]


def _head(plan, head, tokens):
    """(channels of the block in which the head lies, which of them are its own)."""
    at = plan.span(range(head, head + 1))
    shape = (tokens, at.stop - at.start)
    return at, _channels(shape, head * plan.depth - at.start, plan.depth)


def _keys(refs, k):  # with the group of further channels behind
    return jnp.concatenate([k, refs["one_hot"][...]], 1) if "one_hot" in refs else k


def _query(plan, q, own, further, head):  # with the group of further channels behind
    query = (jnp.where(own, q, 0).astype(jnp.float32) * plan.depth**-0.5).astype(q.dtype)
    if not further:
        return query
    group, mine = _own(plan, head, len(q))
    return jnp.concatenate([query, jnp.where(mine, further[group], 0).astype(q.dtype)], 1)


def _relative(refs, plan, q, time):
    """[[queries, group]], float32: q.Rh and q.Rw of every head."""
    if not plan.tables:
        return []
    products_moved = []
    distances, for_rows, between = _distances(plan, (len(q), plan.group), time)
    for group in range(plan.groups):
        at = plan.span(plan.heads(group))
        tables = refs["tables"][:, group, : at.stop - at.start]
        products = [_product(q[:, at], table, (1, 0)) for table in tables]
        moved = [_move(plan, x, to) for x, to in zip(products, distances, strict=True)]
        products_moved.append(jnp.where(between, 1, jnp.where(for_rows, moved[0], moved[-1])))
    return products_moved


def _relative_backward(refs, plan, q, d_further, time, d_q):
    """Adds to the columns of d_q, and to the tables' gradient."""
    if not plan.tables:
        return
    distances, for_rows, _ = _distances(plan, d_further[0].shape, time)
    for group, d_moved in enumerate(d_further):
        at = plan.span(plan.heads(group))
        here = slice(at.stop - at.start)
        halves = [jnp.where(for_rows, d_moved, 0), jnp.where(for_rows, 0, d_moved)]
        for i, d in enumerate([d_moved] if plan.tables == 1 else halves):
            d = _move(plan, d, distances[i], back=True).astype(q.dtype)
            _add(d_q, at, _product(d, refs["tables"][i, group, here], (1, 1)))
            refs["d_tables"][i, group, here] += _product(q[:, at], d, (0, 0))


def _distances(plan, shape, time):
    """For each table how far q's product with it is moved, [queries, group]; which channels are for
    rows; which one tells keys from what lies between them."""
    query = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    row = ((query.astype(jnp.float32) + 0.5) * (1 / plan.stride)).astype(jnp.int32)
    rows = plan.queries[0] - 1 - time * plan.chunk - row
    columns = plan.queries[1] - 1 - (query - row * plan.stride)
    channel = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    channel = channel if plan.extra == plan.group else channel & (plan.extra - 1)
    for_rows, between = channel < plan.extra // 2, channel == plan.extra // 2 + plan.keys[1]
    if plan.tables == 1:
        return [jnp.where(for_rows, rows, columns)], for_rows, between
    return [rows, columns], for_rows, between


def _move(plan, x, distances, back=False):
    """x [queries, group], every row to the left by its own distance, or back: by powers of two."""
    for bit in range((max(plan.queries) - 1).bit_length()):
        moved = pltpu.roll(x, 2**bit if back else plan.group - 2**bit, 1)
        x = jnp.where((distances & 2**bit) != 0, moved, x)
    return x


def _own(plan, head, tokens):
    """(the group of a head's further channels, which of the group are its own)."""
    group, first = divmod(head * plan.extra, plan.group)
    return group, _channels((tokens, plan.group), first, plan.extra)


def _channels(shape, first, count):
    """Which channels are from `first` on so many."""
    channel = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    return (channel >= first) & (channel < first + count)


def _product(a, b, contracted):
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dimensions = (((contracted[0],), (contracted[1],)), ((), ()))
    return jax.lax.dot_general(
        a, b, dimensions, precision=exact, preferred_element_type=jnp.float32
    )
