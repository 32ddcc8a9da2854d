"""Eight very common words of some languages: a text of any length without two of them is hardly prose.

English: Gopher's list (Rae et al. 2021, arXiv 2112.11446). The others: articles, conjunctions and prepositions that
lead every frequency list of the language.
"""

# ruff: noqa: RUF001

STOP_WORDS: dict[str, tuple[str, ...]] = {
    "en": ("the", "be", "to", "of", "and", "that", "have", "with"),
    "de": ("der", "die", "und", "in", "zu", "den", "das", "nicht"),
    "fr": ("de", "la", "le", "et", "les", "des", "en", "que"),
    "es": ("de", "la", "que", "el", "en", "y", "los", "del"),
    "it": ("di", "e", "il", "la", "che", "per", "un", "della"),
    "pt": ("de", "a", "que", "o", "e", "do", "da", "em"),
    "nl": ("de", "en", "van", "het", "een", "in", "is", "dat"),
    "pl": ("w", "i", "na", "z", "się", "do", "nie", "że"),
    "ru": ("и", "в", "не", "на", "что", "с", "по", "как"),
    "sv": ("och", "i", "att", "det", "som", "en", "på", "är"),
    "da": ("og", "i", "at", "det", "en", "den", "til", "er"),
    "no": ("og", "i", "det", "er", "som", "en", "på", "til"),
    "fi": ("ja", "on", "ei", "se", "että", "oli", "hän", "mutta"),
    "cs": ("a", "v", "se", "na", "je", "že", "s", "z"),
    "ro": ("de", "și", "în", "la", "a", "cu", "pe", "nu"),
    "hu": ("a", "az", "és", "hogy", "nem", "is", "egy", "meg"),
    "tr": ("ve", "bir", "bu", "da", "de", "için", "ile", "çok"),
    "uk": ("і", "в", "не", "на", "що", "з", "у", "до"),
    "el": ("και", "το", "να", "της", "του", "η", "με", "που"),
    "ar": ("في", "من", "على", "أن", "إلى", "التي", "ما", "عن"),
    "hi": ("के", "में", "है", "की", "से", "और", "का", "को"),
    "id": ("yang", "dan", "di", "dengan", "untuk", "dari", "ini", "pada"),
    "vi": ("và", "của", "là", "có", "trong", "được", "không", "cho"),
}
"""ISO 639-1 code → words, as they stand inside a sentence."""
