"""Personal data of every kind in sentences that people write, each with where it stands; and near misses without any."""

# ruff: noqa: E501
from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterator

from stdnum import iban, luhn
from tests.planted import numbers

FIRST = ("Anna", "Jürgen", "Maria", "Tom", "Ngozi", "Li", "Priya", "Chloé", "Sven", "Olga", "Pedro", "Fatima")
LAST = ("Schmidt", "O'Neill", "García", "Kowalski", "Okafor", "Wang", "Sharma", "Dubois", "Larsson", "Petrova")
HOSTS = (
    "posteo.de",
    "mail.example.org",
    "uni-bonn.de",
    "yahoo.co.uk",
    "company.io",
    "firma.com.br",
    "orange.fr",
    "web.net",
)

Maker = Callable[[random.Random], str]


def email(rng: random.Random) -> str:
    """Plain, tagged, numbered and spelled-out addresses."""
    first, last = (rng.choice(names).lower().replace("'", "") for names in (FIRST, LAST))
    name = rng.choice(
        (f"{first}.{last}", f"{first}_{last}{rng.randrange(99)}", f"{first[0]}{last}+news", f"{first}-{last}")
    )
    host = rng.choice(HOSTS)
    if rng.random() < 0.1:
        return f"{first}.{last} [at] {host.replace('.', ' [dot] ')}" if rng.random() < 0.5 else f"{first}(at){host}"
    return f"{name}@{host}" if rng.random() < 0.9 else f"{name.upper()}@{host.upper()}"


def phone(rng: random.Random) -> str:
    """International, North American, French, British; others come with a word before them (see `TEMPLATES`)."""
    d = numbers.digits
    area = f"{rng.choice('23456789')}{rng.choice('02345678')}{rng.choice('023456789')}"
    exchange = f"{rng.choice('23456789')}{rng.choice('02345678')}{rng.choice('023456789')}"
    return rng.choice(
        (
            f"+49 {rng.choice(('30', '89', '221', '151'))} {d(rng, 7)}", f"+44 20 7{d(rng, 3)} {d(rng, 4)}",
            f"+33 {rng.choice('1246')} {d(rng, 2)} {d(rng, 2)} {d(rng, 2)} {d(rng, 2)}", f"+34 6{d(rng, 8)}",
            f"+1-{area}-{exchange}-{d(rng, 4)}", f"+91 9{d(rng, 4)} {d(rng, 5)}", f"+86 13{d(rng, 1)} {d(rng, 4)} {d(rng, 4)}",
            f"+49 (0){rng.choice(('30', '40'))} / {d(rng, 6)}", f"({area}) {exchange}-{d(rng, 4)}", f"{area}-{exchange}-{d(rng, 4)}",
            f"{area}.{exchange}.{d(rng, 4)}", f"0{rng.choice('1456')} 4{d(rng, 1)} {d(rng, 2)} {d(rng, 2)} {d(rng, 2)}",
            f"020 7{d(rng, 3)} {d(rng, 4)}", f"07{d(rng, 3)} {d(rng, 6)}",
        )
    )  # fmt: skip


def named_phone(rng: random.Random) -> str:
    """National forms that only a word tells from other numbers."""
    d = numbers.digits
    return rng.choice(
        (
            f"0{d(rng, 3)}/{d(rng, 6)}",
            f"0{d(rng, 2)}-{d(rng, 7)}",
            f"9{d(rng, 2)} {d(rng, 3)} {d(rng, 3)}",
            f"0171 {d(rng, 7)}",
        )
    )


def ip(rng: random.Random) -> str:
    """Public addresses of both versions."""
    if rng.random() < 0.3:
        groups = [f"{rng.randrange(1, 65536):x}" for _ in range(6)]
        start = rng.choice(("2a01", "2600", "2003", "2401"))
        return rng.choice(
            (
                ":".join([start, *groups, "1"]),
                f"{start}:{groups[0]}:{groups[1]}::{groups[2]}",
                f"{start}:{groups[0]}::{groups[1]}",
            )
        )
    first = rng.choice((23, 45, 62, 80, 85, 91, 104, 134, 151, 178, 195, 203, 212))
    return f"{first}.{rng.randrange(32, 255)}.{rng.randrange(256)}.{rng.randrange(1, 255)}"


def account(rng: random.Random) -> str:
    """IBANs of several countries, in groups or not."""
    country, length, letters = rng.choice(
        (
            ("DE", 22, 0),
            ("FR", 27, 0),
            ("ES", 24, 0),
            ("NL", 18, 4),
            ("GB", 22, 4),
            ("CH", 21, 0),
            ("PL", 28, 0),
            ("NO", 15, 0),
        )
    )
    body = "".join(rng.choice(string.ascii_uppercase) for _ in range(letters)) + numbers.digits(
        rng, length - 4 - letters
    )
    number = country + iban.calc_check_digits(f"{country}00{body}") + body
    return number if rng.random() < 0.4 else " ".join(number[k : k + 4] for k in range(0, length, 4))


def card(rng: random.Random) -> str:
    """Cards of the large issuers, in groups or not."""
    prefix, length = rng.choice(
        (
            ("4", 16),
            ("51", 16),
            ("55", 16),
            ("2221", 16),
            ("37", 15),
            ("34", 15),
            ("6011", 16),
            ("3530", 16),
            ("36", 14),
        )
    )
    body = prefix + numbers.digits(rng, length - len(prefix) - 1)
    number = body + luhn.calc_check_digit(body)
    if rng.random() < 0.4:
        return number
    mark = rng.choice(" -")
    groups = (4, 6, 4, 5) if length < 16 else (4, 4, 4, 4)
    parts, at = [], 0
    for size in (groups[0], groups[1], length - groups[0] - groups[1]) if length < 16 else groups:
        parts.append(number[at : at + size])
        at += size
    return mark.join(parts)


NATIONAL: dict[str, tuple[str, ...]] = {
    "us_ssn": ("{} is my social security number", "SSN {}"), "uk_nhs": ("NHS number {}",), "de_tax": ("Steuer-ID {}",),
    "fr_nir": ("n° de sécurité sociale {}",), "es_dni": ("con DNI {}",), "it_codice": ("codice fiscale {}",),
    "nl_bsn": ("BSN {}",), "be_rrn": ("registre national {}",), "pl_pesel": ("PESEL {}",),
    "se_personnummer": ("personnummer {}", "född {}"), "no_fodselsnummer": ("fødselsnummer {}",), "fi_hetu": ("henkilötunnus {}",),
    "ch_ahv": ("AHV-Nummer {}",), "cz_rodne": ("rodné číslo {}",), "ro_cnp": ("CNP {}",), "tr_kimlik": ("T.C. kimlik no {}",),
    "pt_nif": ("NIF {}",), "ca_sin": ("social insurance number {}",), "br_cpf": ("CPF {}", "portador do número {}"),
    "ar_cuit": ("CUIL {}",), "cl_rut": ("RUT {}",), "mx_curp": ("CURP {}",), "in_aadhaar": ("Aadhaar {}",),
    "cn_resident": ("身份证 {}", "ID card {}"), "kr_rrn": ("주민등록번호 {}",), "jp_number": ("マイナンバー {}",),
    "th_id": ("เลขบัตร {}",), "za_id": ("South African ID {}",), "il_id": ("Israeli ID {}",), "au_tfn": ("TFN {}",),
}  # fmt: skip
FORMS = {
    "us_ssn": "###-##-####", "uk_nhs": "### ### ####", "de_tax": "## ### ### ###", "ch_ahv": "###.####.####.##",
    "be_rrn": "##.##.##-###.##", "br_cpf": "###.###.###-##", "ar_cuit": "##-########-#", "cl_rut": "##.###.###-#",
    "in_aadhaar": "#### #### ####", "kr_rrn": "######-#######", "th_id": "#-####-#####-##-#", "cz_rodne": "######/####",
    "au_tfn": "### ### ###", "ca_sin": "### ### ###", "fr_nir": "# ## ## ## ### ### ##",
}  # fmt: skip
"""How people write them, where that is not plainly."""


def national(kind: str, rng: random.Random) -> str:
    """A valid number of the kind, as it is written."""
    number = numbers.valid(kind, rng)
    if kind not in FORMS or (kind not in ("kr_rrn", "br_cpf", "us_ssn", "cl_rut") and rng.random() < 0.3):
        return number
    rest = iter(number)
    return "".join(next(rest) if mark == "#" else mark for mark in FORMS[kind])


def address(rng: random.Random) -> str:
    """Streets of six languages."""
    number = rng.randrange(1, 240)
    return rng.choice(
        (
            f"{number} {rng.choice(('Maple', 'Old Church', 'Washington', 'St. James'))} {rng.choice(('Street', 'Avenue', 'Rd', 'Lane', 'Drive', 'Blvd.'))}",
            f"{number} Oak Street, Apt {rng.randrange(1, 90)}, Springfield, IL {numbers.digits(rng, 5)}",
            f"{number}{rng.choice('abc')} High Road, London N{rng.randrange(1, 9)} {rng.randrange(1, 9)}AB",
            f"{rng.choice(('Goethe', 'Schiller', 'Bahnhof', 'Linden'))}straße {number}, {numbers.digits(rng, 5)} {rng.choice(('Berlin', 'Bonn', 'Köln'))}",
            f"{rng.choice(('Am Alten Markt', 'Lange'))} Str. {number}", f"Karl-Marx-Allee {number}", f"Beethovenplatz {number}",
            f"{number} rue {rng.choice(('de la République', 'Victor Hugo', 'des Lilas'))}, 750{rng.randrange(10, 20)} Paris",
            f"{number}, avenue du Général Leclerc", f"Via {rng.choice(('Garibaldi', 'Roma', 'dei Mille'))} {number}",
            f"Calle {rng.choice(('Mayor', 'de Alcalá', 'San Juan'))} {number}", f"Avenida Paulista, {number}",
            f"Kerkstraat {number}", f"Prinsengracht {number}", f"ul. Długa {number}", f"P.O. Box {number}",
        )
    )  # fmt: skip


def secret(rng: random.Random) -> str:
    """Keys and passwords as they leak."""

    def chars(count: int, alphabet: str = string.ascii_letters + string.digits) -> str:
        return "".join(rng.choice(alphabet) for _ in range(count))

    upper = string.ascii_uppercase + "234567"
    return rng.choice(
        (
            f"AKIA{chars(16, upper)}", f"ghp_{chars(36)}", f"github_pat_{chars(22)}_{chars(59)}", f"glpat-{chars(20)}",
            f"xoxb-{numbers.digits(rng, 12)}-{chars(24)}", f"AIza{chars(35)}", f"sk-proj-{chars(48)}", f"sk-ant-api03-{chars(80)}",
            f"sk_live_{chars(24)}", f"hf_{chars(34)}", f"npm_{chars(36)}", f"SG.{chars(22)}.{chars(43)}",
            f"eyJhbGciOiJIUzI1NiJ9.eyJ{chars(40)}.{chars(43)}",
            f"-----BEGIN RSA PRIVATE KEY-----\n{chars(64)}\n{chars(64)}\n{chars(20)}==\n-----END RSA PRIVATE KEY-----",
        )
    )  # fmt: skip


def assigned(rng: random.Random) -> str:
    """A value that only its assignment shows to be a secret."""
    return "".join(rng.choice(string.ascii_letters + string.digits) for _ in range(rng.randrange(14, 40)))


TEMPLATES: tuple[tuple[str, Maker, tuple[str, ...]], ...] = (
    ("email", email, ("Please write to {} before Friday.", "Contact: {}", "{} wrote last week that nothing had changed.", "Mail <{}>, or come by.", "(e-mail {})")),
    ("phone", phone, ("You can reach us under {} all day.", "Reception: {}", "Our office ({}) is closed.", "{} or by post")),
    ("phone", named_phone, ("Tel. {}", "Telefon: {} (Büro)", "call me on {}, please", "Mobile: {}", "phone {}")),
    ("ip", ip, ("The attack came from {} at night.", "Server {} did not answer.", "ssh root@{}", "IP: {}, port 443", "allow {};")),
    ("iban", account, ("Please transfer it to {} by May.", "IBAN: {}", "({})", "account {}, thank you")),
    ("card", card, ("My card {} was charged twice.", "Visa {}", "paid with {}, exp. 09/27", "{}")),
    ("address", address, ("He lives at {} now.", "Ship to {}, please.", "Our shop: {}", "({})")),
    ("secret", secret, ("export TOKEN={}", "I pushed {} by mistake.", 'key: "{}"', "Authorization: Bearer {}")),
    ("secret", assigned, ("password = {}", 'api_key: "{}"', "DB_PASSWORD={}", "secret={}", "access_token='{}'")),
)  # fmt: skip


def planted(count: int, seed: int) -> Iterator[tuple[str, str, str]]:
    """(kind, sentence, what is planted in it): `count` of every kind, national numbers by turns."""
    rng = random.Random(seed)
    for kind, maker, templates in TEMPLATES:
        for _ in range(count):
            value = maker(rng)
            yield kind, rng.choice(templates).replace("{}", value), value
    for number in range(count):
        kind = sorted(NATIONAL)[number % len(NATIONAL)]
        value = national(kind, rng)
        yield "national", rng.choice(NATIONAL[kind]).replace("{}", value) + ", as the form says.", value


NEAR_MISSES = (
    "Version 10.4.22.1 fixes it; see section 3.2.1.4.", "The loopback 127.0.0.1, 192.168.1.20 and 10.0.0.1 are private.",
    "ISBN 978-3-16-148410-0, ISSN 2049-3630", "On 2024-01-15 at 10:22:31 it was 1,234,567.89 dollars.",
    "card 4111 1111 1111 1112 fails its check", "DE89 3704 0044 0532 0130 01 is no account", "2001:db8::1 is for documentation",
    "std::vector<int>::iterator, a::b::c, 12:30:45", "getty@tty1.service, user@host, @decorator, a@b", "git@github.com:owner/project.git",
    "commit 9fceb02d0ae598e95dc970b74767f19372d61af8", "uuid 123e4567-e89b-12d3-a456-426614174000", "SHA256 e3b0c44298fc1c149afbf4c8996fb924",
    "pi is 3.14159265358979323846", "order 20240115-001234, invoice 2024/000123", "password = getpass.getpass()", "api_key = os.environ['API_KEY']",
    "token: your_token_here", "the secret is patience; the key: never give up", "phone numbers are 7 to 15 digits long", "call 3 functions 1000000 times",
    "1000000 2000000 3000000 4000000", "01 02 03 04 05 06", "10 Gbit/s at 100 000 000 packets", "000-00-0000 and 666-12-3456 are never given",
    "The spring 2010 change, during 2017, comparing 2 tuples", "In 3 ways the Drive failed; 5 Place holders", "Chapter 12 Street scenes", "a ratio of 16/9, 1920x1080, 25.4 mm",
    "RFC 7231/6.4.3, CVE-2024-123456, bug #1001961", "DFARS 252.227-7014", "https://user:password@host/ is a form", "Unix time 1700000000, 1700000000000 in ms",
    "0x7fffffffffffffff, 18446744073709551615, 9223372036854775807", "lat 52.520008, long 13.404954", "2^62 = 4611686018427387904",
)  # fmt: skip
"""Each looks like personal data to a careless expression."""
