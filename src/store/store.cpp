#include "store/store.h"

#include <fcntl.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <mutex>
#include <variant>

#include "base/log.h"

namespace lathe::store {
namespace {

using Value = std::variant<int64_t, double, std::string>;

// Schema n is reached from n - 1 by kMigrations[n - 1]. Never edit an entry that was released; add one.
constexpr const char* kMigrations[] = {
    R"(CREATE TABLE examples(id INTEGER PRIMARY KEY, content TEXT NOT NULL UNIQUE, job_id TEXT NOT NULL, created_at REAL NOT NULL);
       CREATE TABLE jobs(id TEXT PRIMARY KEY, state TEXT NOT NULL, request TEXT NOT NULL, result TEXT NOT NULL, created_at REAL NOT NULL,
                         finished_at REAL NOT NULL);
       CREATE TABLE versions(version INTEGER PRIMARY KEY, job_id TEXT NOT NULL, created_at REAL NOT NULL, loss REAL NOT NULL,
                             learning_rate REAL NOT NULL, changed_fraction REAL NOT NULL, synced INTEGER NOT NULL);
       CREATE INDEX jobs_by_time ON jobs(created_at);)",
    R"(CREATE TABLE completions(id TEXT PRIMARY KEY, version INTEGER NOT NULL, conversation TEXT NOT NULL, answer TEXT NOT NULL,
                                created_at REAL NOT NULL, job_id TEXT NOT NULL);)",
    // Outcomes of lessons in columns of their own, and which versions are on disk, as what, and which are gone.
    R"(ALTER TABLE jobs ADD COLUMN previous_version INTEGER NOT NULL DEFAULT 0;
       ALTER TABLE jobs ADD COLUMN version INTEGER NOT NULL DEFAULT 0;
       ALTER TABLE jobs ADD COLUMN steps INTEGER NOT NULL DEFAULT 0;
       ALTER TABLE jobs ADD COLUMN graded_tokens INTEGER NOT NULL DEFAULT 0;
       ALTER TABLE jobs ADD COLUMN tokens INTEGER NOT NULL DEFAULT 0;
       ALTER TABLE jobs ADD COLUMN loss_before REAL NOT NULL DEFAULT 0;
       ALTER TABLE jobs ADD COLUMN loss_after REAL NOT NULL DEFAULT 0;
       ALTER TABLE jobs ADD COLUMN seconds REAL NOT NULL DEFAULT 0;
       ALTER TABLE jobs ADD COLUMN pause_ms REAL NOT NULL DEFAULT 0;
       ALTER TABLE jobs ADD COLUMN changed_fraction REAL NOT NULL DEFAULT 0;
       ALTER TABLE jobs ADD COLUMN realised REAL NOT NULL DEFAULT 0;
       ALTER TABLE jobs ADD COLUMN error_code TEXT NOT NULL DEFAULT '';
       ALTER TABLE jobs ADD COLUMN error TEXT NOT NULL DEFAULT '';
       ALTER TABLE jobs ADD COLUMN relearns TEXT NOT NULL DEFAULT '';
       CREATE TABLE tensors(job_id TEXT NOT NULL, name TEXT NOT NULL, gradient_norm REAL NOT NULL, update_norm REAL NOT NULL,
                            limiter REAL NOT NULL, changed_fraction REAL NOT NULL, realised REAL NOT NULL);
       CREATE INDEX tensors_by_job ON tensors(job_id);
       CREATE INDEX versions_by_job ON versions(job_id);
       CREATE INDEX jobs_by_relearns ON jobs(relearns);
       UPDATE jobs SET result='{}' WHERE NOT json_valid(result);
       UPDATE jobs SET previous_version=coalesce(json_extract(result,'$.previous_version'),0),
         version=coalesce(json_extract(result,'$.version'),0), steps=coalesce(json_extract(result,'$.steps'),0),
         graded_tokens=coalesce(json_extract(result,'$.graded_tokens'),0), tokens=coalesce(json_extract(result,'$.tokens'),0),
         loss_before=coalesce(json_extract(result,'$.loss_before'),0), loss_after=coalesce(json_extract(result,'$.loss_after'),0),
         seconds=coalesce(json_extract(result,'$.seconds'),0), pause_ms=coalesce(json_extract(result,'$.pause_ms'),0),
         changed_fraction=coalesce(json_extract(result,'$.changed_fraction'),0),
         realised=coalesce(json_extract(result,'$.realised_update'),0),
         error_code=coalesce(json_extract(result,'$.error.code'),''),
         error=coalesce(json_extract(result,'$.error.message'),json_extract(result,'$.error'),'');
       INSERT INTO tensors SELECT jobs.id, json_extract(t.value,'$.name'), coalesce(json_extract(t.value,'$.gradient_norm'),0),
         coalesce(json_extract(t.value,'$.update_norm'),0), coalesce(json_extract(t.value,'$.limiter'),1),
         coalesce(json_extract(t.value,'$.changed_fraction'),0), coalesce(json_extract(t.value,'$.realised_update'),1)
         FROM jobs, json_each(jobs.result,'$.tensors') t;
       ALTER TABLE jobs DROP COLUMN result;
       ALTER TABLE versions ADD COLUMN kind TEXT NOT NULL DEFAULT 'learn';
       ALTER TABLE versions ADD COLUMN durable_as INTEGER NOT NULL DEFAULT 0;
       ALTER TABLE versions ADD COLUMN lost INTEGER NOT NULL DEFAULT 0;
       UPDATE versions SET kind='rollback' WHERE job_id='';
       ALTER TABLE versions DROP COLUMN synced;)",
};
constexpr int64_t kSchema = std::size(kMigrations);

double now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// `native` is the operating system's number, by which a full disk is known.
Error database_error(sqlite3* db, int code) {
  const bool damaged = code == SQLITE_CORRUPT || code == SQLITE_NOTADB;
  const int native = code == SQLITE_FULL ? ENOSPC : code == SQLITE_IOERR ? sqlite3_system_errno(db) : 0;
  return {damaged ? Code::kCorruption : Code::kIo, std::string("database: ") + sqlite3_errmsg(db), native};
}

// One prepared statement with its values bound. Columns are read as they are asked for.
class Statement {
 public:
  Statement(sqlite3* db, const char* sql, const std::vector<Value>& values) : db_(db) {
    if (sqlite3_prepare_v2(db, sql, -1, &statement_, nullptr) != SQLITE_OK) return;
    int index = 1;
    for (const Value& value : values) bind(index++, value);
  }
  ~Statement() { sqlite3_finalize(statement_); }
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;

  // Whether there is a (further) row.
  Result<bool> step() {
    const int code = statement_ ? sqlite3_step(statement_) : sqlite3_errcode(db_);
    if (code == SQLITE_ROW) return true;
    if (code == SQLITE_DONE) return false;
    return database_error(db_, code);
  }
  int64_t integer(int column) const { return sqlite3_column_int64(statement_, column); }
  double real(int column) const { return sqlite3_column_double(statement_, column); }
  std::string text(int column) const {
    const auto* bytes = reinterpret_cast<const char*>(sqlite3_column_text(statement_, column));
    return bytes ? std::string(bytes, static_cast<size_t>(sqlite3_column_bytes(statement_, column))) : std::string();
  }

 private:
  void bind(int index, const Value& value) {
    if (const auto* integer = std::get_if<int64_t>(&value)) {
      sqlite3_bind_int64(statement_, index, *integer);
    } else if (const auto* real = std::get_if<double>(&value)) {
      sqlite3_bind_double(statement_, index, *real);
    } else {
      const auto& text = std::get<std::string>(value);
      sqlite3_bind_text(statement_, index, text.data(), static_cast<int>(text.size()), SQLITE_TRANSIENT);
    }
  }

  sqlite3* db_;
  sqlite3_stmt* statement_ = nullptr;
};

// Conversations are for their owner alone. SQLite gives the files that it keeps beside the database the same mode.
Status keep_private(const std::string& path) {
  const int file = ::open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, S_IRUSR | S_IWUSR);
  if (file < 0) return io_error("cannot open " + path, errno);
  const bool done =
      ::fchmod(file, S_IRUSR | S_IWUSR) == 0 || errno == EPERM;  // another user's stays as that one has it
  const int native = errno;
  ::close(file);
  return done ? Status() : Status(io_error("cannot keep " + path + " private", native));
}

}  // namespace

struct Store::State {
  std::mutex mutex;  // guards db
  sqlite3* db = nullptr;
  State() = default;
  ~State() { sqlite3_close(db); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  Status run(const char* sql, const std::vector<Value>& values = {}) {
    Statement statement(db, sql, values);
    while (LATHE_TRY(statement.step())) {
    }
    return {};
  }

  Status script(const std::string& sql) {
    if (sqlite3_exec(db, sql.c_str(), nullptr, nullptr, nullptr) == SQLITE_OK) return {};
    return database_error(db, sqlite3_errcode(db));
  }

  // All that `work` does, or nothing of it.
  template <class Work>
  Status together(Work work) {
    LATHE_TRY(script("BEGIN IMMEDIATE"));
    const Status done = work();
    if (done.ok()) return script("COMMIT");
    [[maybe_unused]] const Status undone = script("ROLLBACK");
    return done;
  }

  Status settle(const std::vector<int64_t>& on_disk);

  Result<int64_t> number(const char* sql, const std::vector<Value>& values = {}) {
    Statement statement(db, sql, values);
    if (!LATHE_TRY(statement.step())) return int64_t{0};
    return statement.integer(0);
  }

  Status migrate() {
    const int64_t schema = LATHE_TRY(number("PRAGMA user_version"));
    if (schema > kSchema)
      return unsupported("it was written by a newer version of lathe (schema " + std::to_string(schema) + ")");
    for (int64_t next = schema; next < kSchema; ++next) {
      LATHE_TRY(script("BEGIN;" + std::string(kMigrations[next]) + "PRAGMA user_version=" + std::to_string(next + 1) +
                       ";COMMIT;"));
    }
    return {};
  }
};

Store::Store(std::unique_ptr<State> state) : state_(std::move(state)) {}
Store::~Store() = default;

Result<std::unique_ptr<Store>> Store::open(const std::string& path) {
  LATHE_TRY(keep_private(path));
  auto state = std::make_unique<State>();
  if (sqlite3_open_v2(path.c_str(), &state->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, nullptr) != SQLITE_OK) {
    return database_error(state->db, sqlite3_errcode(state->db)).at(path);
  }
  sqlite3_busy_timeout(state->db, 5000);
  LATHE_TRY(state->script("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;").at(path));
  LATHE_TRY(state->migrate().at(path));
  LATHE_TRY(
      state->run("UPDATE jobs SET state='interrupted', error_code='unavailable', error='the server ended before "
                 "this lesson did', finished_at=? WHERE state IN ('queued','running')",
                 {now()}));
  return std::unique_ptr<Store>(new Store(std::move(state)));
}

Result<int64_t> Store::add_example(const std::string& content_json, const std::string& job_id) {
  const std::lock_guard hold(state_->mutex);
  LATHE_TRY(
      state_->run("INSERT INTO examples(content, job_id, created_at) VALUES(?,?,?) ON CONFLICT(content) DO NOTHING",
                  {content_json, job_id, now()}));
  return state_->number("SELECT id FROM examples WHERE content=?", {content_json});
}

Result<int64_t> Store::example_count() {
  const std::lock_guard hold(state_->mutex);
  return state_->number("SELECT count(*) FROM examples");
}

Status Store::add_job(const Job& job) {
  const std::lock_guard hold(state_->mutex);
  return state_->run("INSERT INTO jobs(id, state, request, relearns, created_at, finished_at) VALUES(?,?,?,?,?,0)",
                     {job.id, job.state, job.request_json, job.relearns, now()});
}

Status Store::set_state(const std::string& id, const std::string& state) {
  const std::lock_guard hold(state_->mutex);
  return state_->run("UPDATE jobs SET state=? WHERE id=?", {state, id});
}

Status Store::finish_job(const Job& job, const std::vector<TensorChange>& tensors) {
  const std::lock_guard hold(state_->mutex);
  return state_->together([&]() -> Status {
    const Learned& l = job.learned;
    LATHE_TRY(state_->run(
        "UPDATE jobs SET state=?, previous_version=?, version=?, steps=?, graded_tokens=?, tokens=?, loss_before=?, "
        "loss_after=?, seconds=?, pause_ms=?, changed_fraction=?, realised=?, error_code=?, error=?, finished_at=? "
        "WHERE id=?",
        {job.state, l.previous_version, l.version, l.steps, l.graded_tokens, l.tokens, l.loss_before, l.loss_after,
         l.seconds, l.pause_ms, l.changed_fraction, l.realised, job.error_code, job.error, now(), job.id}));
    for (const TensorChange& t : tensors) {
      LATHE_TRY(
          state_->run("INSERT INTO tensors VALUES(?,?,?,?,?,?,?)",
                      {job.id, t.name, t.gradient_norm, t.update_norm, t.limiter, t.changed_fraction, t.realised}));
    }
    return {};
  });
}

namespace {

// A lesson's versions are counted with it, so that it says by itself whether it is durable.
constexpr char kJobColumns[] =
    "SELECT id, state, request, previous_version, version, steps, graded_tokens, tokens, loss_before, loss_after, "
    "seconds, pause_ms, changed_fraction, realised, error_code, error, relearns, "
    "coalesce((SELECT id FROM jobs again WHERE again.relearns=jobs.id ORDER BY rowid DESC LIMIT 1), ''), created_at, "
    "finished_at, "
    "(SELECT count(*) FROM versions WHERE job_id=jobs.id AND durable_as=0 AND lost=0), "
    "(SELECT count(*) FROM versions WHERE job_id=jobs.id AND lost=1) FROM jobs ";

Job job_of(const Statement& row) {
  return {.id = row.text(0),
          .state = row.text(1),
          .request_json = row.text(2),
          .learned = {.previous_version = row.integer(3),
                      .version = row.integer(4),
                      .steps = row.integer(5),
                      .graded_tokens = row.integer(6),
                      .tokens = row.integer(7),
                      .loss_before = row.real(8),
                      .loss_after = row.real(9),
                      .seconds = row.real(10),
                      .pause_ms = row.real(11),
                      .changed_fraction = row.real(12),
                      .realised = row.real(13)},
          .error_code = row.text(14),
          .error = row.text(15),
          .relearns = row.text(16),
          .relearned_by = row.text(17),
          .created_at = row.real(18),
          .finished_at = row.real(19),
          .pending_versions = row.integer(20),
          .lost_versions = row.integer(21)};
}

Result<std::vector<Job>> all_jobs(sqlite3* db, const char* condition, const std::vector<Value>& values) {
  Statement row(db, (kJobColumns + std::string(condition)).c_str(), values);
  std::vector<Job> jobs;
  while (LATHE_TRY(row.step())) jobs.push_back(job_of(row));
  return jobs;
}

}  // namespace

Result<Job> Store::job(const std::string& id) {
  const std::lock_guard hold(state_->mutex);
  Statement row(state_->db, (kJobColumns + std::string("WHERE id=?")).c_str(), {id});
  if (!LATHE_TRY(row.step())) return not_found("there is no job " + id);
  return job_of(row);
}

Result<std::vector<Job>> Store::jobs(int64_t limit, const std::string& after) {
  const std::lock_guard hold(state_->mutex);
  int64_t before_row = INT64_MAX;
  if (!after.empty()) {
    before_row = LATHE_TRY(state_->number("SELECT rowid FROM jobs WHERE id=?", {after}));
    if (before_row == 0) return not_found("there is no job " + after);
  }
  return all_jobs(state_->db, "WHERE rowid<? ORDER BY rowid DESC LIMIT ?", {before_row, limit});
}

Result<std::vector<Job>> Store::jobs_in_state(const std::string& state) {
  const std::lock_guard hold(state_->mutex);
  return all_jobs(state_->db, "WHERE state=? ORDER BY rowid", {state});
}

Result<std::vector<TensorChange>> Store::tensors(const std::string& job_id) {
  const std::lock_guard hold(state_->mutex);
  Statement row(state_->db,
                "SELECT name, gradient_norm, update_norm, limiter, changed_fraction, realised FROM tensors WHERE "
                "job_id=? ORDER BY rowid",
                {job_id});
  std::vector<TensorChange> tensors;
  while (LATHE_TRY(row.step()))
    tensors.push_back({row.text(0), row.real(1), row.real(2), row.real(3), row.real(4), row.real(5)});
  return tensors;
}

Status Store::add_completion(const Completion& c, int64_t keep) {
  if (keep <= 0 || c.conversation_json.size() + c.answer_json.size() > kMaxCompletionBytes) return {};
  const std::lock_guard hold(state_->mutex);
  LATHE_TRY(state_->script("PRAGMA synchronous=NORMAL"));
  const Status added = state_->run(
      "INSERT OR REPLACE INTO completions(id, version, conversation, answer, created_at, job_id) VALUES(?,?,?,?,?,'')",
      {c.id, c.version, c.conversation_json, c.answer_json, now()});
  const Status pruned =
      state_->run("DELETE FROM completions WHERE rowid <= (SELECT max(rowid) FROM completions) - ?", {keep});
  LATHE_TRY(state_->script("PRAGMA synchronous=FULL"));
  return added.ok() ? pruned : added;
}

void Store::keep_completion(const Completion& completion, int64_t keep) {
  const Status kept = add_completion(completion, keep);
  if (!kept.ok()) log::warning("the answer " + completion.id + " was not kept: " + kept.error().message);
}

Status Store::mark_corrected(const std::string& id, const std::string& job_id) {
  const std::lock_guard hold(state_->mutex);
  return state_->run("UPDATE completions SET job_id=? WHERE id=?", {job_id, id});
}

namespace {

constexpr char kCompletionColumns[] = "SELECT id, version, conversation, answer, created_at, job_id FROM completions ";

Completion completion_of(const Statement& row) {
  return {.id = row.text(0),
          .version = row.integer(1),
          .conversation_json = row.text(2),
          .answer_json = row.text(3),
          .created_at = row.real(4),
          .job_id = row.text(5)};
}

}  // namespace

Result<Completion> Store::completion(const std::string& id) {
  const std::lock_guard hold(state_->mutex);
  Statement row(state_->db, (kCompletionColumns + std::string("WHERE id=?")).c_str(), {id});
  if (!LATHE_TRY(row.step())) {
    return not_found("there is no chat completion '" + id +
                     "' here; only the latest are kept (--keep-completions), and only complete ones");
  }
  return completion_of(row);
}

Result<std::vector<Completion>> Store::completions(int64_t limit) {
  const std::lock_guard hold(state_->mutex);
  Statement row(state_->db, (kCompletionColumns + std::string("ORDER BY rowid DESC LIMIT ?")).c_str(), {limit});
  std::vector<Completion> completions;
  while (LATHE_TRY(row.step())) completions.push_back(completion_of(row));
  return completions;
}

Status Store::add_version(const Version& v) {
  const std::lock_guard hold(state_->mutex);
  return state_->run(
      "INSERT OR REPLACE INTO versions(version, kind, job_id, created_at, loss, learning_rate, changed_fraction, "
      "durable_as, lost) VALUES(?,?,?,?,?,?,?,?,0)",
      {v.version, v.kind, v.job_id, now(), v.loss, v.learning_rate, v.changed_fraction, v.durable_as});
}

Status Store::remove_version(int64_t version) {
  const std::lock_guard hold(state_->mutex);
  return state_->run("DELETE FROM versions WHERE version=?", {version});
}

Status Store::set_changed_fraction(int64_t version, double fraction) {
  const std::lock_guard hold(state_->mutex);
  LATHE_TRY(state_->script("PRAGMA synchronous=NORMAL"));
  const Status set = state_->run("UPDATE versions SET changed_fraction=? WHERE version=?", {fraction, version});
  LATHE_TRY(state_->script("PRAGMA synchronous=FULL"));
  return set;
}

Status Store::State::settle(const std::vector<int64_t>& on_disk) {
  for (const int64_t version : on_disk)
    LATHE_TRY(run("UPDATE versions SET durable_as=? WHERE version<=? AND durable_as=0 AND lost=0", {version, version}));
  return {};
}

Status Store::mark_durable(const std::vector<int64_t>& on_disk) {
  const std::lock_guard hold(state_->mutex);
  // Of a long history only the end is new.
  const int64_t first =
      LATHE_TRY(state_->number("SELECT coalesce(min(version), 0) FROM versions WHERE durable_as=0 AND lost=0"));
  const auto begin = std::lower_bound(on_disk.begin(), on_disk.end(), first);
  return state_->together([&] { return state_->settle({begin, on_disk.end()}); });
}

Result<Lost> Store::mark_lost(const std::vector<int64_t>& on_disk) {
  const std::lock_guard hold(state_->mutex);
  Lost lost;
  const Status marked = state_->together([&]() -> Status {
    LATHE_TRY(state_->settle(on_disk));
    const std::string gone = "durable_as=0 AND lost=0";
    Statement version(state_->db, ("SELECT version FROM versions WHERE " + gone + " ORDER BY version").c_str(), {});
    while (LATHE_TRY(version.step())) lost.versions.push_back(version.integer(0));
    const std::string finished =
        "state IN ('succeeded','not_learned') AND id IN (SELECT job_id FROM versions WHERE " + gone + ")";
    Statement job(state_->db, ("SELECT id FROM jobs WHERE " + finished + " ORDER BY rowid").c_str(), {});
    while (LATHE_TRY(job.step())) lost.jobs.push_back(job.text(0));
    LATHE_TRY(state_->run(("UPDATE jobs SET state='lost' WHERE " + finished).c_str()));
    return state_->run(("UPDATE versions SET lost=1 WHERE " + gone).c_str());
  });
  if (!marked.ok()) return marked.error();
  return lost;
}

namespace {

constexpr char kVersionColumns[] =
    "SELECT version, kind, job_id, created_at, loss, learning_rate, changed_fraction, durable_as, lost FROM versions ";

Result<std::vector<Version>> all_versions(sqlite3* db, const char* condition, const std::vector<Value>& values) {
  Statement row(db, (kVersionColumns + std::string(condition)).c_str(), values);
  std::vector<Version> versions;
  while (LATHE_TRY(row.step())) {
    versions.push_back({row.integer(0), row.text(1), row.text(2), row.real(3), row.real(4), row.real(5), row.real(6),
                        row.integer(7), row.integer(8) != 0});
  }
  return versions;
}

}  // namespace

Result<std::vector<Version>> Store::versions(int64_t limit) {
  const std::lock_guard hold(state_->mutex);
  return all_versions(state_->db, "ORDER BY version DESC LIMIT ?", {limit});
}

Result<std::vector<Version>> Store::versions_in(int64_t on_disk_after, int64_t on_disk_to) {
  const std::lock_guard hold(state_->mutex);
  return all_versions(state_->db, "WHERE durable_as>? AND durable_as<=? AND lost=0 ORDER BY version",
                      {on_disk_after, on_disk_to});
}

Result<std::vector<Version>> Store::pending_versions() {
  const std::lock_guard hold(state_->mutex);
  return all_versions(state_->db, "WHERE durable_as=0 AND lost=0 ORDER BY version", {});
}

Result<std::vector<Version>> Store::lost_versions(int64_t limit) {
  const std::lock_guard hold(state_->mutex);
  return all_versions(state_->db, "WHERE lost=1 ORDER BY version DESC LIMIT ?", {limit});
}

Result<int64_t> Store::latest_version() {
  const std::lock_guard hold(state_->mutex);
  return state_->number("SELECT coalesce(max(version), 0) FROM versions");
}

}  // namespace lathe::store
