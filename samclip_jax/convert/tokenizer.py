"""CLIP's tokenizer, from the files it is published in, as the JSON of Hugging Face's tokenizers."""

import gzip

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers

from samclip_jax.convert.readers import read_json
from samclip_jax.errors import UserError
from samclip_jax.paths import local_path
from samclip_jax.tokenizer import ENDS, STARTS, Tokenizer

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # clip.simple_tokenizer
OPENAI_FILE = "bpe_simple_vocab_16e6.txt.gz"
OPENAI_MERGES = 49152 - 256 - 2  # that many of the file's lines, after its first


def tokenizer_json(folder, path, vocab_size):
    """The tokenizer in `path` (a file or a folder), or else in the weights' folder.

    UserError where there is none, or one with another number of tokens than the model's.
    """
    path = local_path(path or folder)
    files = [path] if path.is_file() else [path / "tokenizer.json", path / OPENAI_FILE]
    file = next((file for file in files if file.is_file()), path / "vocab.json")
    if not file.is_file():
        raise UserError(
            f"there is no tokenizer in {path}: put the model's tokenizer.json, or its vocab.json "
            f"and merges.txt, there, or pass --tokenizer=PATH ({OPENAI_FILE} will do for a CLIP of "
            "OpenAI or OpenCLIP)."
        )
    try:
        text = _read(file)
        size = tokenizers.Tokenizer.from_str(text).get_vocab_size()
    except Exception as error:  # `tokenizers` raises bare Exceptions
        raise UserError(f"{file} is not a tokenizer: {error}.") from error
    if size != vocab_size:
        raise UserError(
            f"{file} has {size} tokens and the model {vocab_size}: pass the model's own as "
            "--tokenizer=PATH."
        )
    Tokenizer(text)
    return text


def _read(path):
    if path.name == "vocab.json":
        lines = path.with_name("merges.txt").read_text().splitlines()
        return _bpe(read_json(path), [line for line in lines if not line.startswith("#version")])
    if path.suffix == ".gz":
        lines = gzip.decompress(path.read_bytes()).decode().splitlines()
        merges = lines[1 : 1 + OPENAI_MERGES]
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        words = [*letters, *(letter + "</w>" for letter in letters)]
        words += [merge.replace(" ", "") for merge in merges] + [STARTS[0], ENDS[0]]
        return _bpe({word: i for i, word in enumerate(words)}, merges)
    return path.read_text()


def _bpe(vocab, merges):
    """CLIP's byte-level BPE: lower case, white space and words apart, words end in </w>."""
    start, end = (next(name for name in names if name in vocab) for names in (STARTS, ENDS))
    pairs = [tuple(line.split()) for line in merges if line]
    model = models.BPE(vocab, pairs, unk_token=end, end_of_word_suffix="</w>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.add_special_tokens([start, end])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer.to_str()
