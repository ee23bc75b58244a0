// While the file named by FULL_DISK exists, the disk is full: what would write to a file fails with ENOSPC. For
// LD_PRELOAD; test_status_codes.py builds it.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int full(int fd) {
  struct stat file;
  const char* name = getenv("FULL_DISK");
  if (fd <= 2 || !name || access(name, F_OK) != 0) return 0;
  if (fstat(fd, &file) != 0 || !S_ISREG(file.st_mode)) return 0;
  errno = ENOSPC;
  return 1;
}

ssize_t pwrite64(int fd, const void* data, size_t size, off64_t at) {
  return full(fd) ? -1 : NEXT(pwrite64)(fd, data, size, at);
}
ssize_t pwrite(int fd, const void* data, size_t size, off_t at) {
  return full(fd) ? -1 : NEXT(pwrite)(fd, data, size, at);
}
ssize_t write(int fd, const void* data, size_t size) {
  return full(fd) ? -1 : NEXT(write)(fd, data, size);
}
