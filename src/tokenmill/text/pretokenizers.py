"""How byte-level BPE vocabularies cut text before merging, by the name that GGUF files give (``tokenizer.ggml.pre``).

The merges were learned on such pieces, so a wrong cut gives wrong ids for right-looking text: a name that is not in the
table is refused. The patterns are those of the models' own ``tokenizer.json``; the names are llama.cpp's
(src/llama-vocab.cpp). Several patterns are applied one after the other, each cutting the pieces of the one before.

Refused for want of anything to check them against: afmoe, chameleon, gemma4, kimi-k2, sarvam-moe, superbpe, whitespace.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tokenizers import Regex, normalizers, pre_tokenizers

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_CASED_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_SYMBOLS}|{_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_TEKKEN = rf"{_CASED % ('', '')}|\p{{N}}|{_CASED_SYMBOLS}|{_SPACES}"
_GPT4O = rf"{_CASED % (_CONTRACTION + '?', _CONTRACTION + '?')}|\p{{N}}{{1,3}}|{_CASED_SYMBOLS}|{_SPACES}"
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_ASCII_PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
_DEEPSEEK3 = (
    rf"{_ASCII_PUNCTUATION}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
# letters as DeepSeek LLM lists them: scripts with upper and lower case
_DEEPSEEK_LETTERS = (
    "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-"
    "\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-"
    "\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"
    "\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-"
    "\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943]+"
)
_DEEPSEEK_MARKS = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
_HAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"


@dataclass(frozen=True)
class Kind:
    """How one family of vocabularies reads text."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False  # a piece that is a token as a whole is that token, merges or not
    add_bos: bool = False  # where the file does not say
    nfc: bool = False  # canonical composition first

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in self.patterns]
        return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    def normalizer(self) -> normalizers.Normalizer | None:
        return normalizers.NFC() if self.nfc else None


_GPT2_KIND = Kind((_GPT2,))
_DIGITS_GPT2 = Kind((r"\p{N}", _GPT2))
_LLAMA3_KIND = Kind((_LLAMA3,), ignore_merges=True, add_bos=True)
_QWEN2_KIND = Kind((_QWEN2,), nfc=True)
_DEEPSEEK3_KIND = Kind((r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", _DEEPSEEK3))
_GPT4O_KIND = Kind((_GPT4O,))
_BAILING = Kind(
    (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",)
)

_BY_KIND: list[tuple[Kind, str]] = [
    (Kind((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")), "default"),
    (_GPT2_KIND, "gpt-2 phi-2 mpt olmo jais trillion granite-docling gigachat a.x-4.0 mellum modern-bert exaone4"),
    (_GPT2_KIND, "jina-es jina-de jina-v2-es jina-v2-de"),
    (_DIGITS_GPT2, "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2"),
    (_LLAMA3_KIND, "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano"),
    (replace(_LLAMA3_KIND, add_bos=False), "glm4 glm5"),
    (replace(_LLAMA3_KIND, add_bos=False, ignore_merges=False), "dbrx smaug-bpe chatglm-bpe"),
    (Kind((r"\p{N}{1,3}", _LLAMA3.replace("{1,3}", "+")), ignore_merges=True), "minicpm5"),
    (_QWEN2_KIND, "qwen2 deepseek-r1-qwen kormo f2llmv2"),
    (replace(_QWEN2_KIND, nfc=False), "megrez stablelm2 hunyuan solar-open grok-2"),
    (Kind((_QWEN35,), nfc=True), "qwen35"),
    (Kind((_QWEN2.removeprefix(_CONTRACTION + "|"),)), "ufakzeka"),
    (Kind((r"[^\n]+|[\n]+", _QWEN2)), "laguna"),
    (Kind((rf"{_CONTRACTION}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",)), "seed-coder"),
    (_BAILING, "bailingmoe bailingmoe2 llada-moe"),
    (Kind((_TEKKEN,), ignore_merges=True, add_bos=True), "tekken"),
    (_GPT4O_KIND, "gpt-4o llama4 kanana2 talkie minimax-m2"),
    (Kind((r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O)), "tiny_aya cohere2moe"),
    (_DEEPSEEK3_KIND, "deepseek-v3 hunyuan-dense hy_v4 joyai-llm"),
    (
        Kind(
            (
                "[\r\n]",
                _DEEPSEEK_LETTERS,
                _DEEPSEEK_MARKS,
                r"\s+$",
                _HAN,
                r"\p{N}+",
            )
        ),
        "deepseek-llm",
    ),
    (Kind(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, r"\p{N}")), "deepseek-coder"),
    (Kind((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")), "falcon"),
    (Kind((_BLOOM,)), "bloom poro-chat gpt3-finnish"),
    (Kind((_BLOOM, r"\p{N}")), "viking"),
]

KINDS: dict[str, Kind] = {name: kind for kind, names in _BY_KIND for name in names.split()}
"""llama.cpp's name → how to cut."""
