"""Training tokenizers: what is wanted (`spec`), the trainers (`build`), SentencePiece files, a reference for BPE."""

from tokenmill.text.train.build import Trained, train_tokenizer
from tokenmill.text.train.spec import KINDS_OF_TOKENIZER, TokenizerSpec

__all__ = ["KINDS_OF_TOKENIZER", "TokenizerSpec", "Trained", "train_tokenizer"]
