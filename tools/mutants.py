#!/usr/bin/env python3
"""Breaks the code that writes model directories, and the code that teaches, on purpose, one line at a time, and sees whether a test notices.

usage: mutants.py [--sample N [--seed S]] [NAME...]    those whose names contain one of the words; N of them
       mutants.py --fit                               only whether each still fits the code: at once, builds nothing

Each mutant is a replacement of text that occurs exactly once; it is made in a copy of the tree (build-mutants/), built and
judged by the tests below in turn. Prints which test caught it; exit code 1 if one survived or no longer fits the code.
"""

import argparse
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
COPY = REPOSITORY / "build-mutants"
STATES = "30000"  # one pass over all operations of all scenarios

# name: (file, old, new), files as seen from the suite's folder
HISTORY = {
    "delta: not synced before its rename": (
        "sync.cpp", "  LATHE_TRY(file->sync());\n  LATHE_TRY(file->close());\n  return Written{", "  LATHE_TRY(file->close());\n  return Written{"),
    "delta: renamed first, synced afterwards": (
        "sync.cpp", "  LATHE_TRY(step.env.sync_directory(paths.deltas));  // the durable point\n",
        "  const auto late = step.env.open_in_place(path);\n  if (late.ok()) LATHE_TRY((*late)->sync());\n  LATHE_TRY(step.env.sync_directory(paths.deltas));\n", "  LATHE_TRY(file->sync());\n  LATHE_TRY(file->close());\n  return Written{", "  return Written{"),
    "delta: its directory not synced": (
        "sync.cpp", "  LATHE_TRY(step.env.sync_directory(paths.deltas));  // the durable point\n", ""),
    "delta: a failed sync is tried again": (
        "sync.cpp", "  LATHE_TRY(file->sync());\n  LATHE_TRY(file->close());\n  return Written{",
        "  if (!file->sync().ok()) LATHE_TRY(file->sync());\n  LATHE_TRY(file->close());\n  return Written{"),
    "delta: the deltas' directory is not made durable": (
        "sync.cpp", "  LATHE_TRY(io::create_directory_durably(step.env, paths.deltas));\n",
        "  LATHE_TRY(step.env.create_directories(paths.deltas));\n",
        "applied.cpp", "  LATHE_TRY(io::create_directory_durably(env, paths.deltas));\n", ""),
    "sync: no question whether there is room": (
        "sync.cpp", "    LATHE_TRY(check_room(step.env, paths, delta, step.options.apply));\n", ""),
    "adopt: files that others wrote are not synced": (
        "applied.cpp", "    LATHE_TRY(file->sync());\n", ""),
    "adopt: .lathe is not made durable": (
        "applied.cpp", "  LATHE_TRY(io::create_directory_durably(env, paths.lathe));\n", "  LATHE_TRY(env.create_directories(paths.lathe));\n",
        "applied.cpp", "  LATHE_TRY(env.sync_directory(paths.directory));\n", "",
        "sync.cpp", "  LATHE_TRY(io::create_directory_durably(step.env, paths.lathe));\n", ""),
    "apply: a rewritten shard is not synced": (
        "apply.cpp", "  LATHE_TRY(out->sync());\n", ""),
    "apply: the shard is overwritten instead of replaced": (
        "apply.cpp", "  const std::string path = paths_.shard(file.name) + delta::kNew;\n  LATHE_TRY(io::remove_if_there(env_, path));  // never goes on with a file whose sync may have failed\n",
        "  const std::string path = paths_.shard(file.name);\n",
        "apply.cpp", "    LATHE_TRY(env_.rename(path + delta::kNew, path));\n    ++report_", "    ++report_"),
    "apply: names of shards not synced": (
        "apply.cpp", "  LATHE_TRY(env.sync_directory(paths.directory));\n  Applied now", "  Applied now",
        "apply.cpp", "  return env_.sync_directory(paths_.directory);\n", "  return {};\n"),
    "apply: names of shards that a killed process renamed not synced": (
        "apply.cpp", "  LATHE_TRY(env.sync_directory(paths.directory));\n  Applied now", "  Applied now"),
    "apply: no journal": (
        "apply.cpp", "  LATHE_TRY(write_journal(env_, paths_, journal));\n", ""),
    "apply: journal written after the blocks": (
        "apply.cpp", "  LATHE_TRY(write_journal(env_, paths_, journal));\n", "",
        "apply.cpp", "  return file.sync();\n", "  LATHE_TRY(write_journal(env_, paths_, journal));\n  return file.sync();\n"),
    "apply: blocks in place not synced": (
        "apply.cpp", "  return file.sync();\n", "  return {};\n"),
    "apply: a failed sync in place is tried again": (
        "apply.cpp", "  return file.sync();\n", "  return file.sync().ok() ? Status() : file.sync();\n"),
    "apply: the journal is not laid over a torn shard": (
        "apply.cpp", "torn ? &*journal : nullptr", "torn ? nullptr : nullptr"),
    "apply: a shard with a journal is written in place again": (
        "apply.cpp", "task.never_in_place |= journal && journal->file == delta.files()[task.file].name;", "static_cast<void>(task);"),
    "apply: a journal of an earlier apply is believed": (
        "apply.cpp", "  if (journal && (journal->from_version != from || journal->to_version != to))\n    journal.reset();  // of an apply that ended\n", "",
        "apply.cpp", "  const int64_t from = delta.info().from_version, to = delta.info().to_version;\n", "  const int64_t to = delta.info().to_version;\n",
        "apply.cpp", "  return io::remove_if_there(env, paths.journal);\n", "  return {};\n"),
    "apply: what is there already is decoded again": (
        "apply.cpp", "  if (hash == tile.after) return known;\n", ""),
    "apply: hash before not looked at": (
        "apply.cpp", "  if (hash != tile.before) {\n", "  if (false) {\n"),
    "apply: published files are written in place": (
        "apply.cpp", "task.never_in_place = stat.links > 1;", "static_cast<void>(stat.links);"),
    "apply: the state is written before the shards": (
        "apply.cpp", "  Applier applier(env, paths, delta, applied.state, options, report);\n",
        "  LATHE_TRY(write_applied(env, paths, {.version = to, .state = after}));\n  Applier applier(env, paths, delta, applied.state, options, report);\n"),
    "materialize: the link goes before the copy comes": (
        "apply.cpp", "    LATHE_TRY(io::copy_file(env, path, path + delta::kNew));\n",
        "    LATHE_TRY(io::copy_file(env, path, path + delta::kNew));\n    LATHE_TRY(env.remove(path));\n    LATHE_TRY(env.sync_directory(paths.directory));\n"),
    "env: copies are not synced": (
        "../io/env.cpp", "  LATHE_TRY(target->sync());\n", ""),
    "env: small files are not synced before their rename": (
        "../io/env.cpp", "  LATHE_TRY(file->sync());\n  return file->close();", "  return file->close();"),
    "env: names of small files are not synced": (
        "../io/env.cpp", "  return env.sync_directory(parent_directory(path));\n}\n\n}  // namespace lathe::io", "  return {};\n}\n\n}  // namespace lathe::io"),
    "recovery: builds on names that are not durable": (
        "history.cpp", "  if (LATHE_TRY(env.exists(paths.deltas))) LATHE_TRY(env.sync_directory(paths.deltas));\n", ""),
    "recovery: litter stays": (
        "history.cpp", "  LATHE_TRY(remove_litter(env, paths.deltas, delta::kNew));\n", ""),
    "recovery: pending deltas are not applied": (
        "history.cpp", "    if (delta.to <= applied->version) continue;\n", "    continue;\n"),
    "recovery: parts of a merge stay": (
        "history.cpp", "    LATHE_TRY(env.remove(paths.delta(old.from, old.to)));\n", ""),
    "prune: the merged delta is not synced": (
        "prune.cpp", "  LATHE_TRY(file->sync());\n", ""),
    "prune: the parts go first": (
        "prune.cpp", "  if (written.ok()) written = env.rename(temporary, path);\n",
        "  for (const DeltaFile& part : parts) LATHE_TRY(env.remove(paths.delta(part.from, part.to)));\n  if (written.ok()) written = env.rename(temporary, path);\n"),
    "prune: a pushed version is merged away": (
        "prune.cpp", "keep.insert(version);\n  PruneReport", "static_cast<void>(version);\n  PruneReport"),
    "publish: the generation is not synced": (
        "publish.cpp", "    return env_.sync_directory(directory);\n", "    return {};\n"),
    "publish: the generation's name is not synced before the link": (
        "publish.cpp", "    LATHE_TRY(env_.sync_directory(generations_));\n    LATHE_TRY(flip());", "    LATHE_TRY(flip());"),
    "publish: the link is removed and made anew": (
        "publish.cpp", "      LATHE_TRY(env_.rename(link_ + delta::kNew, link_));\n",
        "      LATHE_TRY(io::remove_if_there(env_, link_));\n      LATHE_TRY(env_.rename(link_ + delta::kNew, link_));\n"),
    "publish: shards keep their names": (
        "publish.cpp", 'return shard.substr(0, at) + "-v" + std::to_string(version) + shard.substr(std::min(at, shard.size()));',
        "return shard.substr(0, at) + (version < 0 ? std::string() : shard.substr(std::min(at, shard.size())));"),
    "publish: the link's name is not synced": (
        "publish.cpp", "    return env_.sync_directory(parent);\n", "    return {};\n"),
    "push: what is received is not synced": (
        "push.cpp", "  LATHE_TRY(file->sync());\n", ""),
    "push: what is received is not verified": (
        "push.cpp", "  LATHE_TRY(delta.verify());\n", ""),
    "export: the directory is not synced before its rename": (
        "export.cpp", "  return env.sync_directory(target);\n}\n\n}  // namespace", "  return {};\n}\n\n}  // namespace"),
    "export: files are not synced": (
        "export.cpp", "  LATHE_TRY(out->sync());\n", ""),
}

TEACHING = {
    "versions: a number is given twice": (
        "versions.cpp", "  move(State::kWhole, State::kWriting);\n  return ++last_given_;", "  move(State::kWhole, State::kWriting);\n  return last_given_ = live_ + 1;"),
    "versions: what was taken back stays live": (
        "versions.cpp", "  move(State::kWriting, State::kWhole);\n  live_ = durable_.load();", "  move(State::kWriting, State::kWhole);\n  live_ = last_given_;"),
    "versions: torn weights may be taught": (
        "versions.cpp", "  state_ = State::kTorn;", "  state_ = State::kWhole;"),
    "lesson: the one before is not made durable first": (
        "teacher.cpp", "      if (options_.history == HistoryMode::kLesson && versions_.pending()) sync_or_log();\n", ""),
    "lesson: its outcome does not wait for durability": (
        "teacher.cpp", "  if (lesson.durable && versions_.pending()) {", "  if (false) {"),
    "lesson: not durable by itself": (
        "teacher.cpp", "idle && options_.history == HistoryMode::kLesson;", "idle && options_.history == HistoryMode::kInterval;"),
    "lesson: a known answer takes a step": (
        "teacher.cpp", "      if (proposal.loss < lesson.until_loss) {", "      if (false) {"),
    "lesson: a rising loss is a success": (
        "teacher.cpp", "outcome.learned.loss_after < outcome.learned.loss_before ? State::kSucceeded : State::kNotLearned", "State::kSucceeded"),
    "lesson: its memory is not estimated": (
        "teacher.cpp", "  LATHE_TRY(check_memory(lesson));\n", ""),
    "lesson: cancelled only at its end": (
        "teacher.cpp", "  if (!reason) return {};\n", "  if (reason || !reason) return {};\n"),
    "lesson: a sync waits for its end": (
        "teacher.cpp", "  while (jobs_.sync_waits()) execute(*jobs_.next_command());\n", ""),
    "policy: asked for the first step only": (
        "teacher.cpp", "    if (policy_) LATHE_TRY(", "    if (policy_ && step == 0) LATHE_TRY("),
    "policy: a refusal leaves earlier steps": (
        "teacher.cpp", "  checkpointer_.take_back(/*whole=*/false);\n  learned.steps = 0;", "  versions_.unchanged();\n  learned.steps = 0;"),
    "commit: a holder's failing end is overlooked": (
        "teacher.cpp", "    done = holder_.end(version);\n", "    (void)holder_.end(version);\n"),
    "jobs: what is refused is stored": (
        "jobs.cpp", "    if (ticket->lesson.relearns.empty() && std::ssize(lessons_) >= max_queued_) {",
        "    if (ticket->lesson.relearns.empty() && std::ssize(lessons_) >= max_queued_) {\n      (void)store_.add_job({.id = ticket->lesson.id, .state = \"failed\"});"),
    "jobs: an error loses its code": (
        "jobs.cpp", "const Error kStopping{Code::kUnavailable,", "const Error kStopping{Code::kInternal,"),
    "jobs: taken after the end": (
        "jobs.cpp", "    if (closed_) return kStopping;\n    if (ticket", "    if (ticket"),
    "store: what was lost is not named": (
        "checkpointer.cpp", "  store::Lost lost = LATHE_TRY(store_.mark_lost(there));\n", "  store::Lost lost;\n"),
    "sync: the store is not told": (
        "checkpointer.cpp", "  LATHE_TRY(note_durable());\n  const Moved moved{.version = latest_", "  const Moved moved{.version = latest_"),
    "rollback: the live weights do not follow": (
        "checkpointer.cpp", "    return weights_.reload(dir);\n", "    return Status();\n"),
    "rollback: nothing is read before the weights change": (
        "checkpointer.cpp", "  LATHE_TRY(train::guarded(\"reading the directory\", [&] { return weights_.check_reload(dir); }));\n", ""),
    "rollback: not synced first": (
        "checkpointer.cpp", "  LATHE_TRY(sync());\n  const auto report = move_directory", "  const auto report = move_directory"),
}


class Suite:
    """Mutants of one folder, and the tests that judge them: the fast ones first; of each, what it says first."""

    def __init__(self, mutants, folder, preset, build, tests):
        self.mutants, self.folder, self.preset, self.build, self.tests = mutants, folder, preset, build, tests


SUITES = [
    Suite(HISTORY, "src/history", "core", "build-core", ["sync_test", "history_test", "crash_test"]),
    Suite(TEACHING, "src/teach", "cpu", "build", ["versions_test", "teacher_test"]),
]
ALL = {name: suite for suite in SUITES for name in suite.mutants}


def edits(mutant):
    """(file, old, new) triples; a pair without a file belongs to the file before."""
    fields, file, out = list(mutant), None, []
    while fields:
        if fields[0].endswith(".cpp"):
            file = fields.pop(0)
        out.append((file, fields.pop(0), fields.pop(0)))
    return out


def misfits():
    """What the code no longer says, as lines of text."""
    found = []
    for name, suite in ALL.items():
        texts: dict[pathlib.Path, str] = {}
        for file, old, new in edits(suite.mutants[name]):
            path = REPOSITORY / suite.folder / file
            text = texts.get(path) or (path.read_text() if path.is_file() else "")
            if text.count(old) != 1:
                found.append(f"{name}: no longer fits {file}: {old.strip()[:80]!r} is there {text.count(old)} times")
            texts[path] = text.replace(old, new)
    return found


def run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, **options)


def prepare(suites):
    """A copy of the tree as it is; files that did not change keep their times, so that little is built."""
    listed = run("git", "-C", REPOSITORY, "ls-files", "--cached", "--others", "--exclude-standard").stdout.splitlines()
    for name in listed:
        source, target = REPOSITORY / name, COPY / name
        if not source.is_file() or (target.is_file() and target.read_bytes() == source.read_bytes()):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    for suite in suites:
        if run("cmake", "--preset", suite.preset, cwd=COPY).returncode != 0:
            sys.exit("mutants: the copy cannot be configured")
        built = build(suite)
        if built.returncode != 0:
            sys.exit("mutants: the unchanged code does not build\n" + built.stdout[-3000:])
        if unchanged := first_failure(suite):
            sys.exit(f"mutants: the unchanged code fails: {unchanged}")


def build(suite):
    return run("cmake", "--build", "--preset", suite.preset, "--target", *suite.tests, cwd=COPY)


def first_failure(suite):
    """The test that fails and what it says, or None."""
    for test in suite.tests:
        arguments = ["--gtest_filter=-*Controls*"] if test == "crash_test" else []
        try:
            done = run(COPY / suite.build / suite.folder / test, *arguments, timeout=600, env={**os.environ, "LATHE_CRASH_STATES": STATES})
        except subprocess.TimeoutExpired:
            return f"{test}: does not end"
        if done.returncode == 0:
            continue
        failed = re.search(r"^\[  FAILED  \] (\S+)", done.stdout, re.M)
        if test != "crash_test":
            return f"{test}: {failed.group(1) if failed else 'crashed'}"
        said = re.search(r"^(a[^,\n]* [^,\n]*|the first sync[^,\n]*), ([^:\n]*): ", done.stdout, re.M)
        return f"crash_test: {said.group(1)}, {said.group(2)}" if said else "crash_test"
    return None


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutants whose names contain one of these")
    parser.add_argument("--sample", type=int, metavar="N", help="only N of them, chosen by the seed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fit", action="store_true", help="build nothing; only see whether each mutant still fits the code")
    return parser.parse_args()


def judge(name):
    """What caught it; None if nothing did. The copy is whole again afterwards."""
    suite = ALL[name]
    originals: dict[pathlib.Path, str] = {}
    try:
        for file, old, new in edits(suite.mutants[name]):
            path = COPY / suite.folder / file
            text = path.read_text()
            originals.setdefault(path, text)
            path.write_text(text.replace(old, new))
        built = build(suite)
        if built.returncode != 0:
            return None, "does not build: " + (re.search(r"error: .*", built.stdout) or [""])[0]
        return first_failure(suite), ""
    finally:
        for path, text in originals.items():
            path.write_text(text)


def main():
    asked = options()
    if found := misfits():
        sys.exit("\n".join(found))
    if asked.fit:
        print(f"mutants: all {len(ALL)} fit")
        return 0
    chosen = [name for name in ALL if not asked.names or any(word in name for word in asked.names)]
    if asked.sample is not None:
        chosen = sorted(random.Random(asked.seed).sample(chosen, min(asked.sample, len(chosen))))
    if not chosen:
        sys.exit("mutants: no name contains " + " or ".join(asked.names))
    prepare([suite for suite in SUITES if any(name in suite.mutants for name in chosen)])
    survivors = 0
    for name in chosen:
        caught_by, why = judge(name)
        survivors += caught_by is None
        print(f"{'caught  ' if caught_by else 'SURVIVED'}  {name:64} {caught_by or why}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
