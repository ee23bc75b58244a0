"""A few hundred varied strings and the conversations that the comparisons use."""

import random

HAND_WRITTEN = [
    "", " ", "  ", "\n", "\n\n\n", "\t", " \n ", "a", " a", "a ", "Hello world", " Hello  world ", "don't can't WE'LL I'm they've",
    "0", "7 ", " 7", "42", "2024-11-24", "3.14159", "1,000,000", "v1.2.3-rc4", "0x1F", "½ ² ٣ ४ Ⅷ ①", "a1b2c3", "room 101b",
    "tabs\tand\nnewlines\r\n", "trailing   ", "   leading", "camelCaseAndPascalCase", "snake_case_name", "__init__",
    "def f(x):\n    return x ** 2\n", "for (int i = 0; i < 10; ++i) {}", "<html><body>&nbsp;</body></html>", "{\"key\": [1, 2, null]}",
    "https://example.org/path?query=1#frag", "mail@example.org", "C:\\Users\\name", "$x^2 + y^2 = z^2$", "\\frac{1}{2}",
    "naïve café Ünïcödé", "e\u0301 versus é", "Straße", "ﬁne ligature", "İstanbul ıI", "Ελληνικά", "русский текст", "עברית", "العربية",
    "हिन्दी", "ไทย", "中文字符测试", "日本語とカタカナ", "한국어", "emoji 😀 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽", "math ∑∫√∞≠", "\u200b zero \u200d width", "\ufeffbom", "\u00a0nbsp\u2003em",
    "\x00\x01\x1f control", "\x04\x06\x13 bytes the vocabulary lacks", "\U0010ffff", "\U000e0001", "<|im_start|>user\nhi<|im_end|>\n",
    "<|endoftext|>", "<|im_start|><|im_start|>", "<|im_start", "|im_end|>", " <|im_end|> ", "<repo_name>x<file_sep>", "<think>no</think>",
    "a" * 300, " " * 100, "1" * 70, "ab " * 200, "!?!?...", "--- *** ___", "(((nested)))", "“quotes” ‘single’ «guillemets»", "…", "—–-",
    "'s 't 're 've 'm 'll 'd 'S 'RE", "x's y'T", "'", "''", "I'dn't've",
]
ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz     ", "ABCabc123 \n", "0123456789 .,-", " \t\n\r", "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ ab", "àéîõüçñß ",
    "абвгд ежз", "你好世界。， ", "あいうえおカキクケコ", "😀🎉👍🏽\u200d\ufe0f ", "'sStTdDmM lLvVeErR", "<|im_start|>end 1",
]


def strings():
    rng = random.Random(20241124)
    made = ["".join(rng.choices(alphabet, k=rng.randint(1, 60))) for alphabet in ALPHABETS for _ in range(15)]
    mixed = ["".join(rng.choices("".join(ALPHABETS), k=rng.randint(1, 80))) for _ in range(60)]
    return HAND_WRITTEN + made + mixed


def user(text):
    return [{"role": "user", "content": text}]


CONVERSATIONS = [
    user("What is the capital of France?"),
    user("Write a haiku about the sea."),
    user("List three prime numbers between 10 and 30."),
    [{"role": "system", "content": "You answer in one short sentence."}] + user("Why is the sky blue?"),
    user("My name is Ada.") + [{"role": "assistant", "content": "Hello Ada!"}] + user("What is my name?"),
    user("Translate 'good morning' to Spanish."),
]
