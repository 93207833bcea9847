"""A tokenizer as BERT's, for tests: words, and [CLS] and [SEP] around every text."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = ("a", "fine", "dull", "film", "story", "very", "and")
PAD, UNK, CLS, SEP = range(4)
VOCABULARY_SIZE = len(SPECIAL) + len(WORDS)


def bert_like(template: str = "[CLS] $A [SEP]") -> Tokenizer:
    """Lower-cased words as WordPiece; the template says what stands around a text."""
    tokenizer = Tokenizer(
        models.WordPiece({token: index for index, token in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]")  # noqa: S106 # no password
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)])
    return tokenizer


def save_bert_like(path: Path, template: str = "[CLS] $A [SEP]") -> Path:
    """Write the tokenizer, with the truncation and padding that such files often ask for."""
    tokenizer = bert_like(template)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(path))
    return path


def ids_of(*words: str) -> list[int]:
    """The ids of words of the vocabulary."""
    return [len(SPECIAL) + WORDS.index(word) for word in words]
