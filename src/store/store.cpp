#include "store/store.h"

#include <fcntl.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <unistd.h>

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
};
constexpr int64_t kSchema = std::size(kMigrations);

double now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
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
    const bool damaged = code == SQLITE_CORRUPT || code == SQLITE_NOTADB;
    return Error{damaged ? Code::kCorruption : Code::kIo, std::string("database: ") + sqlite3_errmsg(db_), code};
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
    const int code = sqlite3_errcode(db);
    return Error{code == SQLITE_NOTADB || code == SQLITE_CORRUPT ? Code::kCorruption : Code::kIo,
                 std::string("database: ") + sqlite3_errmsg(db), code};
  }

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
    return Error{Code::kIo, "cannot open " + path + ": " + sqlite3_errmsg(state->db)};
  }
  sqlite3_busy_timeout(state->db, 5000);
  LATHE_TRY(state->script("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;").at(path));
  LATHE_TRY(state->migrate().at(path));
  LATHE_TRY(
      state->run("UPDATE jobs SET state='failed', result='{\"error\":\"interrupted\"}', finished_at=? WHERE state IN "
                 "('queued','running')",
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
  return state_->run("INSERT INTO jobs(id, state, request, result, created_at, finished_at) VALUES(?,?,?,'',?,0)",
                     {job.id, job.state, job.request_json, now()});
}

Status Store::set_job(const std::string& id, const std::string& state, const std::string& result_json) {
  const std::lock_guard hold(state_->mutex);
  const double finished = state == "succeeded" || state == "failed" ? now() : 0;
  return state_->run("UPDATE jobs SET state=?, result=?, finished_at=? WHERE id=?", {state, result_json, finished, id});
}

namespace {

Job job_of(const Statement& row) {
  return {.id = row.text(0),
          .state = row.text(1),
          .request_json = row.text(2),
          .result_json = row.text(3),
          .created_at = row.real(4),
          .finished_at = row.real(5)};
}

}  // namespace

Result<Job> Store::job(const std::string& id) {
  const std::lock_guard hold(state_->mutex);
  Statement row(state_->db, "SELECT id, state, request, result, created_at, finished_at FROM jobs WHERE id=?", {id});
  if (!LATHE_TRY(row.step())) return not_found("there is no job " + id);
  return job_of(row);
}

Result<std::vector<Job>> Store::jobs(int64_t limit) {
  const std::lock_guard hold(state_->mutex);
  Statement row(state_->db,
                "SELECT id, state, request, result, created_at, finished_at FROM jobs ORDER BY created_at DESC, rowid "
                "DESC LIMIT ?",
                {limit});
  std::vector<Job> jobs;
  while (LATHE_TRY(row.step())) jobs.push_back(job_of(row));
  return jobs;
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
      "INSERT OR REPLACE INTO versions(version, job_id, created_at, loss, learning_rate, changed_fraction, synced) "
      "VALUES(?,?,?,?,?,?,?)",
      {v.version, v.job_id, now(), v.loss, v.learning_rate, v.changed_fraction, int64_t{v.synced}});
}

Status Store::mark_synced(int64_t up_to_version) {
  const std::lock_guard hold(state_->mutex);
  return state_->run("UPDATE versions SET synced=1 WHERE version<=?", {up_to_version});
}

Result<std::vector<Version>> Store::versions(int64_t limit) {
  const std::lock_guard hold(state_->mutex);
  Statement row(state_->db,
                "SELECT version, job_id, created_at, loss, learning_rate, changed_fraction, synced FROM versions ORDER "
                "BY version DESC LIMIT ?",
                {limit});
  std::vector<Version> versions;
  while (LATHE_TRY(row.step())) {
    versions.push_back(
        {row.integer(0), row.text(1), row.real(2), row.real(3), row.real(4), row.real(5), row.integer(6) != 0});
  }
  return versions;
}

Result<int64_t> Store::latest_version() {
  const std::lock_guard hold(state_->mutex);
  return state_->number("SELECT coalesce(max(version), 0) FROM versions");
}

}  // namespace lathe::store
