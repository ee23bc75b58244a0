// The C library's heap, set for a process whose tensors come and go by the layer.
//
// Why: glibc returns freed memory to the system and fetches it again, page by page and cleared, for the next layer. That
// takes a tenth of the time of a training step on a CPU. Here freed memory stays with the process until all of it is
// returned at once. Together with huge pages, which glibc uses only if the environment says so before it starts
// (apps/lathe), six steps of SmolLM2 take 5,000 page faults instead of 500,000, and their peak is 5 % higher.
// bench/cpu_bench.cpp shows it.
#pragma once

namespace lathe {

// From now on freed memory stays with the process. Once, first thing in main(). Without glibc nothing changes.
void set_up_heap();

// Returns all free pages: after work whose memory is not needed again soon. Any thread; a thread that allocates
// meanwhile waits, for some milliseconds.
void give_back_heap();

}  // namespace lathe
