"""Texts to the token ids of a CLIP text tower, on the `tokenizers` library."""

import html

import numpy as np
import tokenizers

from samclip_jax.errors import UserError
from samclip_jax.inference.texts import text_list

STARTS = ("<|startoftext|>", "<start_of_text>")  # as Hugging Face and as OpenCLIP spell them
ENDS = ("<|endoftext|>", "<end_of_text>")
STRAIGHT = str.maketrans({**dict.fromkeys("ʼ‘’‚‛", "'"), **dict.fromkeys("“”„‟", '"')})


class Tokenizer:
    """open_clip.tokenize for the vocabulary that a checkpoint carries.

    OpenCLIP also runs ftfy, which repairs wrongly decoded text; of that, only what well-formed text
    meets is done: quotes are made straight here, Unicode is composed (NFC) by tokenizer.json.
    """

    def __init__(self, json_text, context_length=77):
        """json_text: the tokenizer.json of a clip or samclip checkpoint. UserError if it is not."""
        try:
            self._vocabulary = tokenizers.Tokenizer.from_str(json_text)
        except Exception as error:  # the library raises bare Exceptions
            raise UserError(f"tokenizer.json is not a tokenizer: {error}") from error
        self._vocabulary.no_padding()
        self._vocabulary.no_truncation()
        self.context_length = context_length
        self.start, self.end = self._id(STARTS), self._id(ENDS)

    def __call__(self, texts):  # [N] str -> int32 [N, context_length]
        """Start, the text's tokens, end, zeros. A text that is too long is cut before the end.

        UserError if texts is no list of texts (inference/texts.py)."""
        texts = [_clean(text) for text in text_list("texts", texts)]
        encodings = self._vocabulary.encode_batch(texts, add_special_tokens=False)
        ids = np.zeros((len(texts), self.context_length), np.int32)
        for row, encoding in zip(ids, encodings, strict=True):
            tokens = [self.start, *encoding.ids[: self.context_length - 2], self.end]
            row[: len(tokens)] = tokens
        return ids

    def _id(self, names):
        for name in names:
            if (token := self._vocabulary.token_to_id(name)) is not None:
                return token
        raise UserError(f"tokenizer.json has no {names[0]}: it is not that of a CLIP")


def _clean(text):
    """Entities (twice, as OpenCLIP), quotes, white space and case."""
    text = html.unescape(html.unescape(text)).translate(STRAIGHT)
    return " ".join(text.split()).lower()
