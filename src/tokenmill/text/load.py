"""Tokenizers out of model folders, as Hugging Face lays them out.

In this order: ``tokenizer.json``; a SentencePiece model (``tokenizer.model``, ``spiece.model``); ``vocab.json`` with
``merges.txt`` (byte-level BPE); ``vocab.txt`` (WordPiece). Beside it ``tokenizer_config.json``,
``special_tokens_map.json``, ``added_tokens.json``, chat templates and ``generation_config.json`` are read as
transformers 5 reads them: a ``tokenizer.json`` is the whole truth about cutting, BOS and EOS (``add_bos_token`` counts
only without one), and named special tokens that it lacks are added to it.

Refused by name: other vocabulary formats, and tokenizer classes whose files alone do not say what they do
(XLM-RoBERTa's shifted ids, …): those need a ``tokenizer.json``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from tokenmill.core.errors import FormatError
from tokenmill.text import modelproto, spm
from tokenmill.text.backend import framing, library_errors
from tokenmill.text.gguf import tokenizer_from_gguf
from tokenmill.text.pretokenizers import KINDS
from tokenmill.text.special import NAMED_TOKENS
from tokenmill.text.tokenizer import Tokenizer

MAX_BYTES = 512 << 20
_KEPT = ("model_max_length", "padding_side", "truncation_side", "model_input_names", "extra_special_tokens")
_SPM_CLASSES = {"Llama": True, "CodeLlama": True, "Gemma": True, "T5": False, "": False}
"""Which classes' names go with a bare SentencePiece model, and whether they put BOS unless told otherwise."""

__all__ = ["tokenizer_from_folder", "tokenizer_from_gguf"]


def tokenizer_from_folder(path: Path) -> Tokenizer:
    """The tokenizer of a model folder; FormatError if there is none or it is broken."""
    return _Folder(Path(path)).tokenizer()


class _Folder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = self.json("tokenizer_config.json") or {}
        name = self.config.get("tokenizer_class")
        self.kind = str(name or "").removesuffix("Fast").removesuffix("Tokenizer")
        if self.kind in ("PreTrained", "TokenizersBackend"):  # the generic classes say nothing
            self.kind = ""
        self.names = self._names()

    def text(self, name: str) -> str | None:
        file = self.path / name
        if not file.is_file():
            return None
        if (size := file.stat().st_size) > MAX_BYTES:
            raise FormatError(file, "", f"{size} bytes are too many for a tokenizer's file")
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(file, f"byte {error.start}", "not UTF-8") from error

    def json(self, name: str) -> dict[str, Any] | None:
        if (text := self.text(name)) is None:
            return None
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FormatError(self.path / name, "", f"not JSON: {error}") from error
        if not isinstance(data, dict):
            raise FormatError(self.path / name, "", f"must be a JSON object, not {type(data).__name__}")
        return data

    def tokenizer(self) -> Tokenizer:
        builders = {
            "tokenizer.json": self._from_json,
            "tokenizer.model": self._from_sentencepiece,
            "spiece.model": self._from_sentencepiece,
            "vocab.json": self._from_merges,
            "vocab.txt": self._from_vocab,
        }
        name = next((name for name in builders if (self.path / name).is_file()), None)
        if name is None:
            raise FormatError(self.path, "", f"no tokenizer here: none of {', '.join(builders)}")
        with library_errors(self.path / name, ""):
            backend = builders[name](self.path / name)
            self._add_declared(backend)
            if name != "tokenizer.json":
                self._frame(backend)
        return Tokenizer(
            backend,
            origin=self.path,
            names=self.names,
            end_ids=self._end_ids(),
            chat_templates=self._chat_templates(),
            settings={key: self.config[key] for key in _KEPT if key in self.config},
        )

    def _names(self) -> dict[str, str]:
        """Named special tokens; the old ``special_tokens_map.json`` counts where the configuration is of its age."""
        declared = dict(self.config)
        if "added_tokens_decoder" not in self.config:
            declared |= self.json("special_tokens_map.json") or {}
        names = {}
        for name in NAMED_TOKENS:
            value = declared.get(name)
            if isinstance(value, Mapping):
                value = value.get("content")
            if value is None:
                continue
            if not isinstance(value, str):
                raise FormatError(self.path, name, f"must be text, not {type(value).__name__}")
            names[name] = value
        return names

    def _end_ids(self) -> list[int]:
        for name in ("generation_config.json", "config.json"):
            ids = (self.json(name) or {}).get("eos_token_id")
            if ids is not None:
                ids = ids if isinstance(ids, list) else [ids]
                if not all(type(token_id) is int and token_id >= 0 for token_id in ids):
                    raise FormatError(self.path / name, "eos_token_id", f"{ids!r} must be ids")
                return ids
        return []

    def _chat_templates(self) -> dict[str, str]:
        files = {"default": self.path / "chat_template.jinja"}
        folder = self.path / "additional_chat_templates"
        if folder.is_dir():
            files |= {file.stem: file for file in sorted(folder.glob("*.jinja"))}
        found = {name: text for name, file in files.items() if (text := self.text(str(file.relative_to(self.path))))}
        if found:  # files hide the configuration's
            return found
        given = self.config.get("chat_template")
        if given is None or isinstance(given, str):
            return {} if given is None else {"default": given}
        try:
            return {str(entry["name"]): str(entry["template"]) for entry in given}
        except (TypeError, KeyError) as error:
            where = "chat_template"
            problem = "must be text or a list of {name, template}"
            raise FormatError(self.path / "tokenizer_config.json", where, problem) from error

    def _add_declared(self, backend: Backend) -> None:
        """Add what the configuration declares beyond the vocabulary's own file."""
        tokens: dict[int, AddedToken] = {}
        for key, value in (self.config.get("added_tokens_decoder") or {}).items():
            try:
                tokens[int(key)] = AddedToken(**value)
            except (TypeError, ValueError) as error:
                raise FormatError(self.path, f"added_tokens_decoder[{key}]", str(error)) from error
        if not tokens:
            for text, token_id in (self.json("added_tokens.json") or {}).items():
                named = text in self.names.values()
                tokens[token_id] = AddedToken(text, special=named, normalized=not named)
        known = {token.content for token in backend.get_added_tokens_decoder().values()}
        for token_id, token in sorted(tokens.items()):
            if token.content not in known:
                backend.add_tokens([token])
                if backend.token_to_id(token.content) != token_id:
                    problem = f"{token.content!r} cannot get this id; save the tokenizer as tokenizer.json"
                    raise FormatError(self.path, f"added_tokens_decoder[{token_id}]", problem)
        special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
        extra = self.config.get("extra_special_tokens") or self.config.get("additional_special_tokens") or []
        for entry in (*self.names.values(), *(extra.values() if isinstance(extra, Mapping) else extra)):
            content = entry.get("content") if isinstance(entry, Mapping) else entry
            if isinstance(content, str) and content not in special:
                backend.add_special_tokens([AddedToken(content, special=True, normalized=False)])

    def _frame(self, backend: Backend) -> None:
        """BOS and EOS by the configuration's flags; only for files that do not carry this themselves."""
        if backend.post_processor is not None:
            return
        sides: list[dict[str, int]] = []
        bos, eos = _SPM_CLASSES.get(self.kind, False), self.kind == "T5"
        for flag, name, default in (("add_bos_token", "bos_token", bos), ("add_eos_token", "eos_token", eos)):
            text = self.names.get(name)
            token_id = None if text is None else backend.token_to_id(text)
            wanted = bool(self.config.get(flag, default))
            sides.append({text: token_id} if wanted and text is not None and token_id is not None else {})
        if any(sides):
            backend.post_processor = framing(*sides)

    def _from_json(self, file: Path) -> Backend:
        return Backend.from_str(self.text(file.name) or "")

    def _from_sentencepiece(self, file: Path) -> Backend:
        if self.kind not in _SPM_CLASSES:
            raise FormatError(file, "", f"{self.kind}Tokenizer does more than its SentencePiece model says")
        model = modelproto.read_model(file)
        for name in ("unk", "bos", "eos", "pad"):
            if (token_id := getattr(model, f"{name}_id")) >= 0:
                self.names.setdefault(f"{name}_token", model.pieces[token_id])
        unk_id = model.unk_id if model.unk_id >= 0 else None
        if model.model_type == modelproto.UNIGRAM:
            backend = spm.unigram(model.pieces, model.scores, model.types, unk_id=unk_id)
        else:
            merging = model.model_type == modelproto.BPE
            backend = spm.bpe(model.pieces, model.scores, model.types, unk_id=unk_id, merging=merging)
        spelling = spm.Spelling(
            model.charsmap, model.add_dummy_prefix, model.remove_extra_whitespaces, model.escape_whitespaces
        )
        backend.normalizer, backend.decoder = spelling.normalizer(), spelling.decoder()
        return backend

    def _from_merges(self, file: Path) -> Backend:
        kinds = {"": "gpt-2", "GPT2": "gpt-2", "Qwen2": "qwen2"}
        if self.kind not in kinds:
            raise FormatError(file, "", f"how {self.kind}Tokenizer cuts text is not in its files: add a tokenizer.json")
        merges = self.text("merges.txt")
        if merges is None:
            raise FormatError(self.path / "merges.txt", "", "missing beside vocab.json")
        pairs = []
        for number, line in enumerate(merges.splitlines(), 1):
            if not line.strip() or (number == 1 and line.startswith("#version")):
                continue
            parts = line.split()
            if len(parts) != 2:
                raise FormatError(self.path / "merges.txt", f"line {number}", "a merge is two tokens")
            pairs.append((parts[0], parts[1]))
        kind = KINDS[kinds[self.kind]]
        backend = Backend(models.BPE(vocab=self.json("vocab.json"), merges=pairs))
        if (normalizer := kind.normalizer()) is not None:
            backend.normalizer = normalizer
        prefix = bool(self.config.get("add_prefix_space", False))
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
        backend.pre_tokenizer = kind.pre_tokenizer() if self.kind == "Qwen2" else byte_level
        backend.decoder = decoders.ByteLevel()
        return backend

    def _from_vocab(self, file: Path) -> Backend:
        if self.kind not in ("", "Bert", "DistilBert", "Electra"):
            raise FormatError(file, "", f"how {self.kind}Tokenizer uses vocab.txt is not known: add a tokenizer.json")
        tokens = (self.text(file.name) or "").split("\n")
        vocab = {token.rstrip("\r"): n for n, token in enumerate(tokens[:-1] if tokens[-1] == "" else tokens)}
        usual = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
        for name, text in {**usual, "mask_token": "[MASK]"}.items():
            if text in vocab:
                self.names.setdefault(name, text)
        if missing := [name for name in ("unk_token", "cls_token", "sep_token") if self.names.get(name) not in vocab]:
            raise FormatError(file, missing[0], "is not in the vocabulary")
        backend = Backend(models.WordPiece(vocab, unk_token=self.names["unk_token"]))
        backend.normalizer = normalizers.BertNormalizer(
            handle_chinese_chars=self.config.get("tokenize_chinese_chars", True),
            strip_accents=self.config.get("strip_accents"),
            lowercase=self.config.get("do_lower_case", True),
        )
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(prefix="##")
        cls, sep = self.names["cls_token"], self.names["sep_token"]
        backend.post_processor = framing({cls: vocab[cls]}, {sep: vocab[sep]})
        return backend
