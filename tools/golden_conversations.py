"""The conversations of tests/golden/text: what chat clients send, and what they should not."""

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
                import json
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
