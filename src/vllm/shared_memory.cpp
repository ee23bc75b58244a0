#include "vllm/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "vllm/descriptor.h"

namespace lathe::vllm {

Result<std::shared_ptr<SharedMemory>> SharedMemory::map(const Memory& memory) {
  const Descriptor file(::open(memory.path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK));
  if (file.get() < 0) {
    const int why = errno;
    return io_error("the weights at " + memory.path +
                        " cannot be opened; is the server running, as the same user and in the same PID namespace?",
                    why);
  }
  struct stat found {};
  if (::fstat(file.get(), &found) != 0) return io_error("examining " + memory.path, errno);
  if (!S_ISREG(found.st_mode)) return invalid_argument(memory.path + " is not a file of shared memory");
  if (found.st_uid != ::geteuid())
    return invalid_argument(memory.path + " belongs to user " + std::to_string(found.st_uid) + ", this is user " +
                            std::to_string(::geteuid()) + "; run Lathe as the server's user");
  if (static_cast<uint64_t>(found.st_size) != memory.bytes)
    return invalid_argument(memory.path + " has " + std::to_string(found.st_size) + " bytes, the manifest says " +
                            std::to_string(memory.bytes));
  const int seals = ::fcntl(file.get(), F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0)
    return invalid_argument(memory.path + " is not sealed against shrinking; it was not made by lathe-vllm");
  void* data = ::mmap(nullptr, memory.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  if (data == MAP_FAILED) return io_error("mapping " + memory.path, errno);
  return std::shared_ptr<SharedMemory>(new SharedMemory(static_cast<std::byte*>(data), memory.bytes));
}

SharedMemory::~SharedMemory() {
  ::munmap(data_, size_);
}

}  // namespace lathe::vllm
