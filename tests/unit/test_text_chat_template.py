"""What a chat template may not do, and what this package adds to transformers' dialect."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import pytest

from tokenmill.core.errors import TemplateError
from tokenmill.text.chat_template import MAX_SOURCE, ChatTemplate

CHAT = [{"role": "user", "content": "hi"}]
GROW = "{%% set ns = namespace(s='aaaaaaaa', l=[1], t=(1,), d={}) %%}{%% for i in range(60) %%}%s{%% endfor %%}"

COSTLY = {
    "repeated text": "{{ 'a' * 10**10 }}",
    "repeated constant": "{% if 'a' * 10**10 %}{% endif %}",
    "repeated list": "{{ ([1] * 10**9) | length }}",
    "a filter's repeated result": "{{ ('a' | string * 10**10) | length }}",
    "large range": "{{ range(10**9) | list }}",
    "nested loops": "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4,
    "loops that print": "{% for i in range(99999) %}{{ 'x' * 100000 }}{% endfor %}",
    "printf width": "{{ '%1000000000d' % 1 }}",
    "printf width given": "{{ '%*d' % (10**9, 1) }}",
    "printf precision": "{{ '%.1000000000f' % 1.0 }}",
    "printf filter": "{{ '%1000000000d' | format(1) }}",
    "printf many": "{{ ('%(a)s' * 10000) % {'a': 'x' * 100000} }}",
    "format width": "{{ '{:1000000000d}'.format(1) }}",
    "format width given": "{{ '{:{}d}'.format(1, 10**9) }}",
    "format width of a mapping": "{{ '{a:1000000000d}'.format_map({'a': 1}) }}",
    "format many": "{% set s = 'x' * 100000 %}{{ ('{0}' * 1000).format(s) }}",
    "strftime width": "{{ strftime_now('%1000000000d') }}",
    "recursive macro": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "macro tree": "{% macro f(n) %}{% if n < 40 %}{{ f(n + 1) }}{{ f(n + 1) }}{% endif %}{% endmacro %}{{ f(0) }}",
    "recursive loop": "{% for x in [[1]] recursive %}{{ loop([x]) }}{% endfor %}",
    "recursive block": "{% block a %}{{ self.a() }}{% endblock %}",
    "called block": "{% macro f() %}{% for i in range(99999) %}{{ caller() }}{% endfor %}{% endmacro %}"
    "{% call f() %}{% for i in range(99999) %}{% endfor %}{% endcall %}",
    "doubled text": GROW % "{% set ns.s = ns.s + ns.s %}",
    "doubled by ~": GROW % "{% set ns.s = ns.s ~ ns.s %}",
    "doubled by a block": GROW % "{% set x %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = x %}",
    "doubled by format": GROW % "{% set ns.s = '%s%s' | format(ns.s, ns.s) %}",
    "doubled by join": GROW % "{% set ns.s = [ns.s, ns.s] | join %}",
    "doubled list": GROW % "{% set ns.l = ns.l + ns.l %}",
    "laughs: list printed": GROW % "{% set ns.l = [ns.l, ns.l] %}" + "{{ ns.l }}",
    "laughs: list compared": GROW % "{% set ns.l = [ns.l, ns.l] %}" + "{{ ns.l == ns.l }}",
    "laughs: tuple hashed": GROW % "{% set ns.t = (ns.t, ns.t) %}" + "{{ {ns.t: 1} }}",
    "laughs: mapping as JSON": GROW % "{% set ns.d = dict(a=ns.d, b=ns.d) %}" + "{{ ns.d | tojson }}",
    "laughs: view printed": GROW % "{% set ns.d = {'a': ns.d, 'b': ns.d}.items() %}" + "{{ ns.d }}",
    "laughs: macro arguments": "{% macro f(n) %}{% if n %}{{ f(n - 1, varargs, varargs) }}{% else %}{{ varargs }}"
    "{% endif %}{% endmacro %}{{ f(40) }}",
    "laughs: batches": GROW % "{% set ns.l = [ns.l, ns.l] | batch(2) | list %}" + "{{ ns.l }}",
    "towers": "{{ 9 ** (9 ** 9) }}",
    "squares": GROW % "{% set ns.n = (ns.n or 3) * (ns.n or 3) %}",
    "long hexadecimal": "{{ ('f' * 1000000) | int(base=16) }}",
    "to_bytes": "{{ (1).to_bytes(10**9, 'big') }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "zfill": "{{ 'a'.zfill(10**10) }}",
    "center": "{{ 'a' | center(10**10) }}",
    "center while compiling": "{% autoescape 'a' | center(10**10) %}{% endautoescape %}",
    "center block": "{% filter center(10**10) %}a{% endfilter %}",
    "many centered": "{{ range(99999) | map('string') | map('center', 100000) | list | length }}",
    "expandtabs": "{{ '\t'.expandtabs(10**9) }}",
    "indent": "{{ 'a\nb' | indent(10**10) }}",
    "JSON indent": "{{ [1] | tojson(indent=10**9) }}",
    "JSON separators": "{% set s = 'x' * 100000 %}{{ range(10000) | list | tojson(separators=(s, s)) }}",
    "replace method": "{% set s = 'a' * 100000 %}{{ s.replace('a', s) }}",
    "replace filter": "{% set s = 'a' * 100000 %}{{ s | replace('a', s) }}",
    "many replaced": "{% set s = 'a' * 500000 %}{{ range(99999) | map('replace', '1', s) | join | length }}",
    "join method": "{% set s = 'a' * 100000 %}{{ s.join(range(99999) | map('string')) }}",
    "join filter": "{% set s = 'a' * 100000 %}{{ range(99999) | join(s) }}",
    "batch": "{{ [1] | batch(10**9, 'x') | list }}",
    "slice": "{{ [1] | slice(10**9) | list }}",
    "round": "{{ 1.5 | round(10**9, 'ceil') }}",
    "sum of lists": "{{ ([[1] * 30] * 5000) | sum(start=[]) | length }}",
    "translate": "{{ 'aaaa'.translate({97: 'b' * 100000}) }}",
    "list of a text": "{% set s = 'é€' * 500000 %}{{ s | list }}",
    "split": "{% set s = 'a ' * 500000 %}{{ s.split() }}",
    "fromkeys": "{{ dict.fromkeys(range(99999), 'x' * 100000) | tojson }}",
    "slow searches": "{% set s = 'ab' * 250000 %}{% for i in range(99999) %}{% if 'aab' in s %}{% endif %}{% endfor %}",
    "slow methods": "{% set s = 'a' * 500000 %}{% for i in range(99999) %}{% set x = s.count('aab') %}{% endfor %}",
    "sorts": "{% for i in range(99999) %}{% set x = range(9999) | list | sort %}{% endfor %}",
    "slices kept": "{% set s = 'x' * 1000000 %}" + "".join(f"{{% set a{n} = s[1:] %}}" for n in range(2000)),
    "deep brackets": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "deep sum": "{{ 1" + "+1" * 20000 + " }}",
    "deep blocks": "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
    "deep list": "{{ " + "[" * 3000 + "]" * 3000 + " }}",
    "too long": "x" * (MAX_SOURCE + 1),
    "cycler": "{% set c = cycler(1, 2) %}{% for i in range(99999) %}{% for j in range(99999) %}{{ c.next() }}"
    "{% endfor %}{% endfor %}",
}

FORBIDDEN = {
    "class": "{{ ''.__class__.__mro__ }}",
    "class through format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "class through format_map": "{{ '{a.__class__.__mro__}'.format_map({'a': ''}) }}",
    "constructor": "{{ cycler.__init__.__globals__.os }}",
    "namespace attribute": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "namespace key": "{{ namespace({'__x': 1}) }}",
    "lipsum": "{{ lipsum.__globals__ }}",
    "list changed": "{{ messages.append(1) }}",
    "mapping changed": "{{ messages[0].pop('role') }}",
    "bytes": "{{ 'a'.encode() }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "extends": "{% extends 'x' %}",
    "refused filter": "{{ messages | pprint }}",
    "division": "{{ 1 / 0 }}",
    "undefined": "{{ x.y }}",
    "unclosed": "{% for m in messages %}",
}

EMPTY = {  # unsafe attributes that only give nothing, as in Jinja's sandbox
    "attr filter": "{{ '' | attr('__class__') }}",
    "globals": "{{ raise_exception.__globals__ }}{{ strftime_now.__code__ }}",
    "loop": "{% for i in [1] %}{{ loop._iterator }}{{ loop.__class__ }}{% endfor %}",
    "macro": "{% macro f() %}{% endmacro %}{{ f._func }}",
    "self": "{{ self._TemplateReference__context }}",
    "item": "{{ ''['__class__'] }}",
}

CHILD = """
import json, resource, sys
from tokenmill.core.errors import TemplateError
from tokenmill.text import chat_template
from tokenmill.text.budget import Budget

# the same limits, with less patience: what only the clock ends need not take seconds each
chat_template.Budget.for_input = classmethod(lambda cls, chars, items: Budget(seconds=0.2))
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (400 << 20), size + (400 << 20)))
for name, source in json.load(sys.stdin).items():
    try:
        text = chat_template.ChatTemplate(source).render([{"role": "user", "content": "hi"}])
        outcome = f"rendered {len(text)} characters"
    except TemplateError as error:
        outcome = "refused" if "MemoryError" not in str(error) else "ran out of memory"
    except BaseException as error:
        outcome = repr(error)[:200]
    print(json.dumps([name, outcome]), flush=True)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space as Linux does")
def test_costly_templates_fail_quickly_and_in_little_memory() -> None:
    """Each in at most 400 MB more than an idle process has; the time-out is far above what all of them take."""
    child = subprocess.run(
        [sys.executable, "-c", CHILD], input=json.dumps(COSTLY), capture_output=True, text=True, timeout=240, check=True
    )
    outcomes = dict(json.loads(line) for line in child.stdout.splitlines())
    assert {name: outcome for name, outcome in outcomes.items() if outcome != "refused"} == {}
    assert outcomes.keys() == COSTLY.keys()


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_is_forbidden_is_an_error(name: str) -> None:
    with pytest.raises(TemplateError, match="chat template"):
        ChatTemplate(FORBIDDEN[name]).render(CHAT)


@pytest.mark.parametrize("name", EMPTY)
def test_what_is_hidden_gives_nothing(name: str) -> None:
    assert ChatTemplate(EMPTY[name]).render(CHAT) == ""


def test_limits_grow_with_the_conversation() -> None:
    """A long conversation may cost what a short one may not."""
    long = [{"role": "user", "content": "word " * 20000}] * 100
    source = (
        "{% for m in messages %}{% set t = m.content | trim | replace('word', 'other') %}{{ t.upper() }}{% endfor %}"
    )
    assert len(ChatTemplate(source).render(long)) > 10_000_000


def test_two_threads_do_not_share_a_budget() -> None:
    template = ChatTemplate("{% for i in range(3000) %}{% for m in messages %}{{ m.content }}{% endfor %}{% endfor %}")
    texts: list[str] = []
    threads = [threading.Thread(target=lambda: texts.append(template.render(CHAT * 20))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == ["hi" * 60000] * 4


def test_a_refusal_is_quoted_and_a_broken_line_named() -> None:
    with pytest.raises(TemplateError, match="refuses this conversation: roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render(CHAT)
    with pytest.raises(TemplateError, match=r"broken, line 3: .*'endfor'"):
        ChatTemplate("\n\n{% endfor %}")


def test_text_parts_are_joined_only_for_templates_that_know_text_alone() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    chat = [{"role": "user", "content": parts}]
    plain = ChatTemplate("{% for m in messages %}<{{ m.content }}>{% endfor %}")
    aware = ChatTemplate("{% for m in messages %}{% for p in m.content %}<{{ p.text }}>{% endfor %}{% endfor %}")
    trimming = ChatTemplate("{{ messages[0].content.strip() }}")
    assert plain.render(chat) == "<a\nb>"
    assert trimming.render(chat) == "a\nb"
    assert aware.render(chat) == "<a><b>"
    assert parts == [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    with pytest.raises(TemplateError, match="takes text only, not a part of type 'image_url'"):
        plain.render([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}])


def test_what_is_not_plain_data_is_refused() -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    for chat, problem in (
        ([], "at least one message"),
        (["hi"], "a mapping with role and content, not str"),
        ([{"role": "user", "content": object()}], "not object"),
        ([{"role": "user", "content": b"hi"}], "not bytes"),
    ):
        with pytest.raises(TemplateError, match=problem):
            template.render(chat)  # type: ignore[arg-type]
    with pytest.raises(TemplateError, match="not both"):
        template.render(CHAT, add_generation_prompt=True, continue_final_message=True)


def test_nested_input_is_a_template_error_not_a_crash() -> None:
    deep: object = "x"
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(TemplateError):
        ChatTemplate("{{ messages }}").render([{"role": "user", "content": deep}])
