// Ends the process with SIGKILL at its n-th operation on files, counted from when the file named by KILL_AT appears,
// which holds n. For LD_PRELOAD; test_crashes.py builds it.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

static long left = -1;
static int armed = 0;

static void tick(void) {
  if (!__atomic_load_n(&armed, __ATOMIC_ACQUIRE)) {
    const char* name = getenv("KILL_AT");
    const int file = name ? open(name, O_RDONLY) : -1;
    if (file < 0) return;
    char text[24] = {0};
    const ssize_t size = read(file, text, sizeof text - 1);
    close(file);
    if (size <= 0) return;
    int expected = 0;
    const long n = atol(text);
    if (__atomic_compare_exchange_n(&armed, &expected, 2, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
      __atomic_store_n(&left, n, __ATOMIC_RELEASE);
  }
  if (__atomic_sub_fetch(&left, 1, __ATOMIC_ACQ_REL) == 0) kill(getpid(), SIGKILL);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t pwrite64(int fd, const void* data, size_t size, off64_t at) {
  tick();
  return NEXT(pwrite64)(fd, data, size, at);
}
ssize_t pwrite(int fd, const void* data, size_t size, off_t at) {
  tick();
  return NEXT(pwrite)(fd, data, size, at);
}
ssize_t write(int fd, const void* data, size_t size) {
  if (fd > 2) tick();
  return NEXT(write)(fd, data, size);
}
int fsync(int fd) {
  tick();
  return NEXT(fsync)(fd);
}
int fdatasync(int fd) {
  tick();
  return NEXT(fdatasync)(fd);
}
int rename(const char* from, const char* to) {
  tick();
  return NEXT(rename)(from, to);
}
int unlink(const char* path) {
  tick();
  return NEXT(unlink)(path);
}
