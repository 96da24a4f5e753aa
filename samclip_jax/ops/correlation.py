"""Features averaged over those that they are like (RADSeg, arXiv 2511.19704)."""

import jax
import jax.numpy as jnp

SCALE = 10.0  # RADSeg's, of both its forms
QUERY_CHUNK = 256  # rows of the similarities that exist at once


def correlated(keys, values, mean=0.0):  # unit [..., N, D], [..., N, C], [...] -> [..., N, C]
    """softmax over j of SCALE (k_i k_j - mean), without the negative ones, times v_j; of each of
    the leading axes by itself. The similarities are float32 and never exist as a whole."""
    lead, tokens = keys.shape[:-2], keys.shape[-2]
    keys, values = (x.reshape(-1, *x.shape[-2:]) for x in (keys, values))
    mean = jnp.broadcast_to(mean, lead).reshape(-1)

    def one(group):
        keys, values, mean = group
        chunks = -(-tokens // QUERY_CHUNK)
        queries = jnp.pad(keys, ((0, chunks * QUERY_CHUNK - tokens), (0, 0)))

        def chunk(queries):
            alike = jnp.einsum("nd,md->nm", queries, keys, preferred_element_type=jnp.float32)
            alike = SCALE * (alike - mean)
            least = jnp.minimum(0, alike.max(-1, keepdims=True))  # that of like features may round
            weights = jax.nn.softmax(jnp.where(alike < least, -jnp.inf, alike), axis=-1)
            return weights.astype(values.dtype) @ values

        answers = jax.lax.map(chunk, queries.reshape(chunks, QUERY_CHUNK, -1))
        return answers.reshape(-1, values.shape[-1])[:tokens]

    return jax.lax.map(one, (keys, values, mean)).reshape(*lead, tokens, -1)


def self_correlated(features):  # unit [B, h, w, D] -> [B, h, w, D]
    """A map of which every feature becomes the mean of those that it is like, more than two of the
    map usually are (RADSeg's self-correlating global aggregation, which has it of the encoder's
    features; here they are in the text's space, of unit length)."""
    flat = features.reshape(len(features), -1, features.shape[-1])
    usual = jnp.square(flat.mean(1)).sum(-1)  # the mean over all pairs
    return correlated(flat, flat, usual).reshape(features.shape)
