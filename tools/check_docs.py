#!/usr/bin/env python3
"""Holds what the pages say to what is there. usage: check_docs.py [ROOT | --self-test]

Of every Markdown file: relative links and their anchors resolve; files of the repository, make targets, subcommands of `lathe`, routes and
flags that stand in code spans and code blocks exist. A path may be written from the repository's root, from src/, from docs/ or from the
page's own folder. A flag counts as ours if it stands alone or after one of our programs.
"""

import pathlib
import re
import subprocess
import sys
import tempfile

FOLDERS = ("apps", "bench", "cmake", "demo", "docs", "examples", "packaging", "python", "rust", "scripts", "src", "tests", "tools", ".ci", ".github")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SPAN = re.compile(r"`([^`\n]+)`")
FENCE = re.compile(r"^\s*```")
PATH = re.compile(r"^[\w.+-]+(?:/[\w.+-]+)+/?$")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")
ROUTE = re.compile(r"^(?:(?:GET|POST|PUT|PATCH|DELETE) )?(/v1/[a-z_/]+)")
OURS = re.compile(r"^(?:[A-Z_]+=\S+ )*(?:\S*build[\w-]*/)?(lathe-torch|lathe|make|python3? (?:scripts|tools|demo|bench)/\S+|(?:scripts|tests|bench|examples|build[\w-]*)/\S+)(?: |$)")
SOURCES = (".cpp", ".h", ".cu", ".py", ".sh", ".txt", ".cmake", ".json", ".toml", ".yml", ".rs")


def slug(heading):
    """The anchor that a heading gets."""
    text = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def tracked(root):
    """The repository's files, also those that are not committed yet."""
    done = subprocess.run(["git", "-C", root, "ls-files", "--cached", "--others", "--exclude-standard"], capture_output=True, text=True, check=False)
    if done.returncode == 0 and done.stdout:
        return [name for name in done.stdout.splitlines() if (root / name).is_file()]
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


class Checker:
    def __init__(self, root):
        self.root = root
        files = tracked(root)
        self.pages = [name for name in files if name.endswith(".md")]
        self.files = set(files)
        self.folders = {str(parent) for name in files for parent in pathlib.PurePath(name).parents}
        self.modules = {name.split("/")[1] for name in files if name.startswith("src/") and name.count("/") > 1}
        code = {name: (root / name).read_text(errors="replace") for name in files
                if name.endswith(SOURCES) or pathlib.PurePath(name).name in ("Makefile", "run")}
        self.text = "\n".join(code.values())
        # A setting is a row of a table, of which its flag is made.
        table = code.get("src/config/settings.cpp", "")
        settings = {f"--{name}" for name in re.findall(r'(?:^ *\{|\.name = )"([a-z-]+)"', table, re.M)}
        self.flags = set(FLAG.findall(self.text)) | settings | {"--help", "--version"}
        self.targets = set(re.findall(r"^([a-z][\w-]*):", code.get("Makefile", ""), re.M))
        own = "\n".join(text for name, text in code.items() if name.startswith("apps/"))
        self.commands = {name.replace("_", "-") for name in re.findall(r"\badd_(\w+)\(CLI::App& app\)", own)}
        self.commands |= set(re.findall(r'add_subcommand\("([\w-]+)"', own))
        self.faults = []

    def fault(self, place, text):
        self.faults.append(f"{place}: {text}")

    def exists(self, page, path):
        here = str(pathlib.PurePath(page).parent)
        for start in (".", "src", "docs", here):
            parts: list[str] = []
            for part in pathlib.PurePath(start, path.rstrip("/")).parts:
                if part == "..":
                    parts[-1:] = []
                else:
                    parts.append(part)
            name = "/".join(parts) or "."
            # `api/requests` is a header and its source.
            if {name, name + ".cpp", name + ".h"} & self.files or name in self.folders:
                return True
        return False

    def check_link(self, page, place, target):
        if re.match(r"[a-z]+:", target):
            return
        path, _, anchor = target.partition("#")
        file = (self.root / page).parent / path if path else self.root / page
        if not file.exists():
            self.fault(place, f"the link to {target} leads nowhere")
        elif anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.*)", file.read_text(), re.M)
            if anchor not in {slug(heading) for heading in headings}:
                self.fault(place, f"{path or page} has no heading for #{anchor}")

    def check_path(self, page, place, word, alone):
        """`word` if it is meant as a file or folder of the repository. Only `alone`, without a command around it, may it start at src/."""
        word = re.sub(r":\d+$", "", word)
        if not PATH.match(word) or "..." in word or re.search(r"\bNAME\b", word):  # NAME: the reader's own
            return
        first = word.split("/")[0]
        ours = first in FOLDERS or (alone and first in self.modules | {"..", "decisions", "formats", "protocols", "research"})
        if ours and not word.startswith("build") and not self.exists(page, word):
            self.fault(place, f"there is no file {word}")

    def check_command(self, place, text):
        """`text`: a line that starts with one of our programs."""
        words = re.sub(r"^(?:[A-Z_]+=\S+ )*", "", text).split()
        program = words[0].rsplit("/", 1)[-1]
        following = next((word for word in words[1:] if re.match(r"[a-z]", word)), None)
        if program == "make" and len(words) > 1:
            for word in words[1:]:
                if re.fullmatch(r"[a-z][\w-]*", word) and word not in self.targets:
                    self.fault(place, f"there is no make target {word}")
        named = program in ("lathe", "lathe-torch") and following is not None and following == words[1]
        if named and following not in self.commands and f'"{text}"' not in self.text:  # "lathe training state 1" opens a file
            self.fault(place, f"lathe has no subcommand {following}")
        for flag in FLAG.findall(text):
            if flag not in self.flags:
                self.fault(place, f"no program of ours has a flag {flag}")

    def check_code(self, page, place, text, alone):
        """`text`: a code span (alone) or one line of a code block."""
        line = text.strip().removeprefix("$ ")
        for piece in re.split(r"\s*(?:&&|\|\||;|\|)\s*", re.sub(r"\s#\s.*", "", line)):
            if OURS.match(piece):
                self.check_command(place, piece)
            elif alone and piece.startswith("--") and (found := FLAG.match(piece)) and found.group() not in self.flags:
                self.fault(place, f"no program of ours has a flag {found.group()}")
            if alone and (found := ROUTE.match(piece)) and found.group(1).rstrip("/") not in self.text:
                self.fault(place, f"no route {found.group(1)}")
        if alone or OURS.match(line):
            for word in line.split():
                self.check_path(page, place, word.strip("\"'(),"), alone and word == line)

    def check_page(self, page):
        in_block = False
        for number, line in enumerate((self.root / page).read_text().splitlines(), 1):
            place = f"{page}:{number}"
            if FENCE.match(line):
                in_block = not in_block
            elif in_block:
                self.check_code(page, place, line, alone=False)
            else:
                for target in LINK.findall(SPAN.sub("", line)):
                    self.check_link(page, place, target)
                for span in SPAN.findall(line):
                    self.check_code(page, place, span, alone=True)

    def run(self):
        for page in self.pages:
            self.check_page(page)
        return self.faults


def self_test():
    """A small tree with one fault of every kind; each must be found, and nothing else."""
    files = {
        "Makefile": "build: x\ntest-all:\n",
        "src/model/layer.cpp": "",
        "src/model/layer.h": "route(\"/v1/learn\"); title = \"lathe training state 1\";",
        "apps/lathe/commands.h": "Action add_serve(CLI::App& app);\n// --port\n",
        "docs/here.md": "# A heading, `here`\n",
        "docs/page.md": "[ok](here.md) [ok](here.md#a-heading-here) `src/model/layer.h` `model/layer` `here.md` `make build` `lathe serve MODEL --port 1`\n"
                        "`--port` `rsync --archive` `POST /v1/learn` `config.json` `src/NAME.cpp` `lathe training state 1`\n"
                        "[gone](gone.md)\n[gone](here.md#gone)\n`model/gone.cpp`\n`make gone`\n`lathe gone`\n`lathe serve --gone`\n`--gone`\n`GET /v1/gone`\n"
                        "```\nmake gone\nrsync --archive\nlathe serve   # --gone\n```\n",
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            path = pathlib.Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        found = [fault.split(": ")[0] for fault in Checker(pathlib.Path(folder)).run()]
    expected = [f"docs/page.md:{line}" for line in (3, 4, 5, 6, 7, 8, 9, 10, 12)]
    if found != expected:
        raise SystemExit(f"self-test failed: faults at {found}, expected {expected}")
    print(f"self-test: all {len(expected)} faults were found")


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent.parent
    checker = Checker(root)
    for line in checker.run():
        print(line)
    if checker.faults:
        raise SystemExit(f"{len(checker.faults)} statement(s) of the pages are not true")
    print(f"docs: {len(checker.pages)} pages, ok")


if __name__ == "__main__":
    main()
