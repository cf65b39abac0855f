"""Chat templates do their work, and a hostile one ends soon, in a sentence."""

import sys
import time

import pytest

from edgespec.chat_template import MAX_CPU_S, render_chat
from edgespec.errors import BundleError

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi [/b] ñ"}]


def rendered(template):
    return render_chat(template, MESSAGES, bos="<s>", eos="</s>", name="b/chat_template.jinja")


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m['content'] }}{% endfor %}",
         "<s><system>Be brief.<user>Hi [/b] ñ"),
        ("{{ messages[1] | tojson }}", '{"role": "user", "content": "Hi [/b] ñ"}'),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
         "{% if ns.n == 2 %}{% break %}{% endif %}{% endfor %}{{ ns.n ~ '/' ~ 2 * 3 }}", "2/6"),
        ("{% macro say(m) %}{{ m.content | trim | replace('Be', 'Is') }}{% endmacro %}"
         "{{ say(messages[0]) + '!' }}{{ 'a,b'.split(',') | join('-') }}", "Is brief.!a-b"),
        ("{{ '%s=%d' | format('a', 3) }} {{ '-' * 3 }} {{ 7 % 4 }}", "a=3 --- 3"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | first }}"
         "{{ 'x' if messages[0].role is string and tools is not defined }}", "Hi [/b] ñx"),
    ],
)  # fmt: skip
def test_what_templates_of_models_use(template, text):
    assert rendered(template) == text


LOOPS = "{% for a in range(99999) %}" * 3 + "x" + "{% endfor %}" * 3


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(10**12) %}{% endfor %}",
        "{% for i in range(1000000000000) %}{% endfor %}",
        LOOPS,
        LOOPS.replace("x", ""),
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'x' * 10000000000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ 'x' | center(10000000000) }}",
        "{{ 'x'.ljust(10000000000) }}",
        "{{ '%10000000000d' | format(1) }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ '{:10000000000}'.format(1) }}",
        "{{ lipsum(n=10000000) }}",
        "{% set a = 'xxxxxxxxxx' %}" + "{% set a = a ~ a %}" * 60,
        "{% set a = 'xxxxxxxxxx' %}" + "{% set a = a + a %}" * 60,
        "{% set a = 'xxxxxxxxxx' %}" + "{% set a %}{{ a }}{{ a }}{% endset %}" * 60,
        "{% set a = 'xxxxxxxxxx' %}" + "{% set a = a | replace('', a) %}" * 60,
        "{% set a = [1] * 90000 %}" + "{% set a = a * 90000 %}" * 60,
        "{{ range(99999) | map('string') | map('center', 99999) | list | length }}",
        "{{ 1 / 0 }}",
        "{{ messages.nothing.more }}",
        "{{ messages[0].append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ raise_exception('only one user\\x1b[2J') }}",
        "{% if %}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "x" * 1_000_000,
    ],
)
def test_a_hostile_template_ends_in_a_sentence(template):
    began, trace = time.thread_time(), sys.gettrace()
    with pytest.raises(BundleError, match=r"^b/chat_template\.jinja failed: \S"):
        rendered(template)
    assert time.thread_time() - began < MAX_CPU_S + 2.0
    assert sys.gettrace() is trace
