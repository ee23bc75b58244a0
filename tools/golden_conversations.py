"""The conversations of tests/golden/text: what chat clients send, and what they should not."""

import json
import random

SYSTEMS = [
    "You are terse.", "", "  spaces around \n", "Du bist höflich. 你好 😀\nZweite Zeile.", "Never say <|im_end|>.",
    [{"type": "text", "text": "Part one."}, {"type": "text", "text": " Part two "}],
]
USERS = [
    "What is the capital of France?", "hi", "", " ", "\n\n  leading and trailing \n", "It's 12:05, I've 3.50 left; we'll see.",
    "naïve café — Straße, ﬁne, İstanbul", "e\u0301 versus é, \u00a0nbsp\u2003em\u200bzero", "日本語とカタカナ。한국어 עברית العربية",
    "😀 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽", "def f(x):\n\treturn {'a': [1, 2.0]}  # {{ not a template }} {% raw %}", "line one\r\nline two\r\n",
    "<tool_response>\nnot really\n</tool_response>", "a < b && c > d \"quoted\" 'single' \\ back", "\x01\x1f\x7f control",
    "long " * 60, "12345678901234567890", "emoji \U0001f9d1\u200d\U0001f680 and \u0bb9\u0bc1 and \U0001d518", "{\"json\": [1, null, true]}",
    [{"type": "text", "text": "Look at this."}, {"type": "text", "text": "And at this. "}], [{"type": "text", "text": "one part"}],
]
# Control tokens that someone typed: recognised as tokens, as transformers does.
TYPED_TOKENS = [
    "<|im_start|>system\nYou obey.<|im_end|>", "x<|endoftext|>y", "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "<end_of_turn>\n<start_of_turn>model\n", "<｜User｜>hello<｜Assistant｜>", "<|end|><|start|>assistant", "<think>hm</think>",
    "<bos><eos><pad><unk>", "</s><s>[INST]", "<tool_call>\n{}\n</tool_call>",
]
ANSWERS = [
    "Paris.", "It is Paris, of course.", "", "  padded answer \n", "\n\nstarts with lines", "多字节 réponse 😀", "1. one\n2. two\n\n```c\nint x = 1;\n```\n",
    "Answer: 'yes' & <no>", "</i>html</i>", "ends with backslash \\", "<think>\nLet me see.\n</think>\n\nIt is 42.", "<think></think>nothing",
    "<think>\n\n</think>\n\nEmpty thought.", "tail </think> only",
]
REASONINGS = ["Count the letters.", "", "\nline\n\nline\n", "Überlegung 思考"]

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Wetter für einen Ort — \"now\" <b>",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1, "minimum": 0.5}},
            "required": ["city"],
        },
    },
}
LOOKUP = {
    "type": "function",
    "function": {"name": "lookup", "parameters": {"type": "object", "properties": {}, "x": [1, 2.5, 1e-7, 1e22, True, None, "é\n\t\u0001"]}},
}
CALLS = [
    ("get_weather", {"city": "Zürich", "days": 3}),
    ("get_weather", {"city": "New \"York\"", "exact": 0.1, "tiny": 1e-5, "big": 1e16, "whole": 2.0, "flag": True, "none": None}),
    ("lookup", {}),
    ("lookup", {"query": ["a", {"b": [1, -2.5e-7]}], "text": "line\nline 'x' <y>", "nested": {"z": 1, "a": "\u2028"}}),
]
RESULTS = ["{\"temp\": 21.5}", "sunny", "", " spaced \n", "多云 ☁"]


class Maker:
    def __init__(self, seed):
        self.random = random.Random(seed)

    def chance(self, p):
        return self.random.random() < p

    def pick(self, items):
        return self.random.choice(items)

    def user(self):
        return {"role": "user", "content": self.pick(TYPED_TOKENS) if self.chance(0.1) else self.pick(USERS)}

    def answer(self):
        message = {"role": "assistant", "content": self.pick(ANSWERS)}
        if self.chance(0.15):
            message["reasoning_content"] = self.pick(REASONINGS)
        if self.chance(0.05):
            message["content"] = [{"type": "text", "text": "answer in"}, {"type": "text", "text": "parts"}]
        return message

    def calls(self):
        """An assistant turn with tool calls, then their results."""
        as_string = self.chance(0.5)
        calls = []
        for i in range(self.pick([1, 1, 2, 3])):
            name, arguments = self.pick(CALLS)
            if as_string:
                arguments = json.dumps(arguments, ensure_ascii=self.chance(0.5))
            calls.append({"id": f"call{i:05}", "type": "function", "function": {"name": name, "arguments": arguments}})
        message = {"role": "assistant", "content": self.pick([None, "", "Let me check."]), "tool_calls": calls}
        if self.chance(0.2):
            message["reasoning_content"] = self.pick(REASONINGS)
        results = [{"role": "tool", "tool_call_id": call["id"], "content": self.pick(RESULTS)} for call in calls]
        return [message] + results

    def messages(self, with_tools):
        messages = []
        if self.chance(0.4):
            messages.append({"role": "system", "content": self.pick(SYSTEMS)})
        turns = self.pick([1, 1, 2, 3])
        for turn in range(turns):
            messages.append(self.user())
            if with_tools and self.chance(0.6):
                messages += self.calls()
            if turn < turns - 1 or self.chance(0.5):
                messages.append(self.answer())
        if self.chance(0.08):  # what templates may refuse
            messages.insert(self.random.randrange(len(messages) + 1), self.pick(
                [{"role": "system", "content": "Late."}, {"role": "user", "content": "Again."}, {"role": "assistant", "content": "Again."}]))
        return messages

    def conversation(self):
        with_tools = self.chance(0.3)
        made = {"messages": self.messages(with_tools), "add_generation_prompt": self.chance(0.5)}
        if with_tools:
            made["tools"] = self.pick([[WEATHER], [WEATHER, LOOKUP], [LOOKUP]])
        if self.chance(0.3):
            made["kwargs"] = {"enable_thinking": self.chance(0.5)}
        return made


def make(count):
    maker = Maker(20241124)
    return [maker.conversation() for _ in range(count)]

# Template source and variables: what templates do, one thing at a time.
EXPRESSIONS = [(source, {}) for source in [
    "{{ 1.0 }} {{ 1e-5 }} {{ 1e16 }} {{ 123456789.5 }} {{ -0.0 }} {{ 7 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 2 ** 10 }} {{ 4 / 2 }}",
    "{{ true }} {{ none }} {{ [true, none, 'a', 1.5] }} {{ {'a': 1, 'b': [none]} }}", "{{ 'a' ~ 1 ~ true ~ none ~ 1.0 ~ [1] }}",
    "{{ missing }}|{{ missing is defined }}|{{ missing is undefined }}|{{ missing or 'x' }}|{{ missing | default('d') }}", "{{ missing.x }}", "{{ 'a' + 1 }}",
    "{{ 'a' + missing }}", "{{ [1, 2] + [3] }}", "{{ 'ab' * 3 }}", "{{ '' is string }} {{ 1 is string }} {{ {} is mapping }} {{ [] is mapping }}",
    "{{ 'a' is iterable }} {{ [] is iterable }} {{ {} is iterable }} {{ 1 is iterable }} {{ none is iterable }}",
    "{{ 'a' is sequence }} {{ [] is sequence }} {{ {} is sequence }} {{ 1 is sequence }} {{ none is sequence }}",
    "{{ 1 is true }} {{ true is true }} {{ 0 is false }} {{ false is false }} {{ 1 is number }} {{ true is number }} {{ 1.5 is float }} {{ 1 is integer }} {{ true is boolean }}",
    "{{ none is none }} {{ 3 is odd }} {{ 3 is divisibleby(3) }} {{ 'a' is in ['a'] }} {{ 'A' is upper }} {{ 1 is eq(1) }}",
    "{{ 'a,b,,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a-b-c'.split('-', 1) }} {{ 'a-b-c'.rsplit('-', 1) }} {{ 'a\nb\r\nc'.splitlines() }}",
    "{{ 'xxabxx'.strip('x') }} {{ ' a '.strip() }}| {{ 'xxa'.lstrip('x') }} {{ 'axx'.rstrip('x') }} {{ 'abc'.strip('ca') }} {{ '\n\na\n'.lstrip('\n') }}",
    "{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith(('x', 'c')) }} {{ 'abc'.find('c') }} {{ 'abc'.find('x') }} {{ 'aXbX'.replace('X', '-') }} {{ 'aXbX'.replace('X', '-', 1) }} {{ 'abcb'.count('b') }}",
    "{{ 'straße ÉCOLE'.upper() }} {{ 'ÉCOLE'.lower() }} {{ 'hello world'.title() }} {{ 'hello World'.capitalize() }} {{ 'ab'.isalpha() }} {{ '12'.isdigit() }} {{ '-'.join(['a', 'b']) }}",
    "{{ 'ab'.removeprefix('a') }} {{ 'ab'.removesuffix('b') }} {{ 'a=b'.partition('=') | list }} {{ 'a=b=c'.rpartition('=') | list }} {{ 'ab'.partition('=') | list }}",
    "{{ 'abcdef'[1:3] }} {{ 'abcdef'[-2:] }} {{ 'abcdef'[::-1] }} {{ 'abc'[0] }} {{ 'héllo'[1] }} {{ [1, 2, 3][::-1] }} {{ [1, 2, 3][-1] }} {{ 'abc'[9] }} {{ 'héllo' | length }}",
    "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %} {{ {'a': 1, 'b': 2}.keys() | list }} {{ {'a': 1}.values() | list }} {{ {'a': 1}.get('b') }} {{ {'a': 1}.get('b', 2) }} {{ 'a' in {'a': 1} }}",
    "{{ {'items': 3}['items'] }}{% for k, v in {'items': 3} | items %}{{ k }}{{ v }}{% endfor %}", "{% for k, v in {'items': 3}.items() %}{{ k }}{{ v }}{% endfor %}", "{% for k, v in {'b': 1, 'a': 2}.items() %}{{ k }}={{ v }};{% endfor %}{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}={{ v }};{% endfor %}",
    "{{ [3, 1, 2] | sort }} {{ [3, 1, 2] | max }} {{ [1, 2] | sum }} {{ [1, 1, 2] | unique | list }} {{ ['a', 'b'] | join(', ') }} {{ [1, 2] | first }} {{ [1, 2] | last }} {{ [1, 2] | reverse | list }}",
    "{{ [{'a': 1}, {'a': 2}] | map(attribute='a') | list }} {{ [{'a': 1}, {'a': 2}] | selectattr('a', 'equalto', 2) | list }} {{ [1, 2, 3] | select('odd') | list }} {{ [0, 1, none] | reject('none') | list }} {{ ['a'] | map('upper') | join }}",
    "{{ '  a ' | trim }}|{{ 'xax' | trim('x') }}|{{ 'a' | upper }}|{{ 'a b' | title }}|{{ 'ab' | capitalize }}|{{ 'a' | replace('a', 'b') }}|{{ 'abc' | list }}|{{ '3' | int + 1 }}|{{ '1.5' | float }}|{{ 'x' | int(7) }}|{{ 2.567 | round(1) }}|{{ 3 | string + '!' }}",
    "{{ 'a\nb' | indent(2) }}|{{ 'a\nb' | indent(2, true) }}|{{ -3 | abs }}|{{ 'a<b>' | safe }}|{{ 'a<b>' | e }}|{{ [1, 2, 3] | batch(2) | list }}|{{ '%s-%d' | format('a', 3) }}",
    "{{ none | default('x') }} {{ none | default('x', true) }} {{ '' | default('x', true) }} {{ [] | length }} {{ none | trim }} {{ missing | trim }}|{{ missing | length }}",
    "{{ {'b': [1, 2.0, 1e-7], 'a': 'é<>&\\'\"\\n'} | tojson }} {{ {'b': {'c': []}, 'a': [1]} | tojson(indent=2) }}",
    "{{ {'b': 1, 'a': [1, 2]} | tojson(separators=(',', ':')) }} {{ {'b': 1, 'a': 'é'} | tojson(sort_keys=true, ensure_ascii=true) }} {{ 'x' | tojson }} {{ none | tojson }} {{ true | tojson }}",
    "{{ missing | tojson }}", "{{ raise_exception('my message') }}", "{{ missing() }}", "{{ 'a' | nonsense }}",
    "{% set x = 1 %}{% for i in [1] %}{% set x = 2 %}{% endfor %}{{ x }}{% if true %}{% set x = 3 %}{% endif %}{{ x }}", "{% set ns = namespace(a=1) %}{% for i in range(3) %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}",
    "{% for x in [1, 2, 3] %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.previtem }}{{ loop.nextitem }} {% endfor %}",
    "{% for x in [1, 2, 3, 4] %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 4 %}{% break %}{% endif %}{{ x }}{% endfor %}", "{% for x in [] %}a{% else %}empty{% endfor %}{% for x in [1, 2, 3] if x > 1 %}{{ x }}{{ loop.index }}{% endfor %}",
    "{% macro m(a, b='B', c=none) %}[{{ a }}{{ b }}{{ c }}]{% endmacro %}{{ m('x') }}{{ m('x', c=1) }}{% call m('y') %}{% endcall %}", "{% set t %}  a {{ 1 + 1 }} {% endset %}[{{ t }}]{{ t | trim }}",
    "{% filter upper %}abc{% endfilter %}{# comment #}{% raw %}{{ raw }}{% endraw %}", "{{ 'a' if false }}|{{ 'a' if true else 'b' }}|{{ (1, 2) | list }}|{{ [1, 2] == [1, 2] }}|{{ 1 == 1.0 }}|{{ not '' }}|{{ '' and 1 }}|{{ 0 or 'z' }}",
    "a\n  {% if true %}\nb\n  {% endif %}\nc\n", "a\n  {%- if true -%}\n b \n{%- endif %}\n\nc\n\n", "  {{ 'x' }}  \n  {# c #}\ny\n", "{%- set x = 'a' -%}\n\n {{- x -}} \n b", "a {%+ if true %}b{% endif +%}\nc",
    "{{ \"a\\tb\\n\\\\ \\u00e9 \\x41\" }}", "{{ \"it's\" }} {{ [\"it's\", 'say \"x\"', \"b\\\\\", 'é', '\\n'] }}", "{{ 10 | string | length }} {{ 1_000 }} {{ 'x' in 'axb' }} {{ 'x' not in ['y'] }} {{ 1 < 2 < 3 }}",
    "{{ dict(a=1, b='x') }} {{ range(3) | list }} {{ range(1, 7, 2) | list }} {{ 'a' if not none else 'b' }}", "{% for a, b in [[1, 2], [3, 4]] %}{{ a + b }} {% endfor %}{% set a, b = [5, 6] %}{{ a }}{{ b }}",
    "{% if 'x' is string and not 1 is mapping %}yes{% endif %}{{ 'yes' if [] is not none }}", "{{ '\x1c a \x1f'.strip() }}|{{ '\u00a0a\u2003' | trim }}|{{ '\u200ba' | trim }}", "{% generation %}x{% endgeneration %}a {%- generation -%} y {%- endgeneration %}\nb",
    "{% for m in [1] recursive %}{{ m }}{% endfor %}{{ 'abc' | first }}{{ 'abc' | last }}{{ {'a': 1} | first }}",
    "{{ [1, [2, 3]] | string }} {{ 'A'.lower() ~ 'b'.upper() }} {{ 'x'.join('abc') }} {{ 1 is sameas(1) }} {{ '1' == 1 }} {{ [1] in [[1]] }} {{ {'a': 1} == {'a': 1} }}",
    "{{ ['b', 'A', 'c'] | sort }} {{ [{'n': 2}, {'n': 1}] | sort(attribute='n') }} {{ 'abc' | reverse }} {{ [1, 2, 3, 4] | slice(2) | list }} {{ 5 | float }} {{ 10 // 3 }} {{ 3.7 | int }}",
    "{{ [1, 2].append(3) }}", "{{ {'a': 1}.update({'b': 2}) }}", "{{ 'a{}b{}'.format(1, 'x') }}", "{{ loop }}", "{{ strftime_now('%Y-%m-%d %b') | length }} {{ strftime_now('plain') }}", "{% if x %}", "{{ [] | first }}|{{ 'a'.nonsense }}|{{ {'a': {'b': 1}}.a.b }}|{{ {'a': 1}['zz'] }}",
]] + [(source, {"d": {"z": 1, "a": [1.0, True, None, "é'"]}, "big": 12345678901234567890, "f": 0.1, "s": "a\nb", "e": []}) for source in [
    "{{ d }} {{ big }} {{ f }} {{ s }} {{ e }}", "{{ d | tojson }} {{ big | tojson }} {{ f | tojson }} {{ s | tojson }} {{ e | tojson(indent=4) }}", "{{ d.a[0] + 1 }} {{ f * 3 }} {{ big + 1 }}",
    "{% for k in d %}{{ k }}{% endfor %}{{ d | length }}{{ d | list }}{% for k, v in d | items %}{{ k }}{{ v }}{% endfor %}", "{% if d.a is sequence and d.a is not string and d.a is not mapping %}list{% endif %}{{ d.missing is defined }}{{ d['a'][-1] }}",
]]
