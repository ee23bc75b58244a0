// The C library's heap, set for a process whose tensors come and go by the layer.
//
// Why: glibc gives freed memory back to the system and fetches it again, page by page and cleared, for the next layer:
// a tenth of the time of a training step on a CPU. Here what was freed stays with the process until it is given back as
// a whole. Together with huge pages, which glibc asks for only if the environment says so before it starts
// (apps/lathe), six steps of SmolLM2 take 5,000 page faults instead of 500,000, and their peak is 5 % higher.
// bench/cpu_bench.cpp shows it.
#pragma once

namespace lathe {

// From now on freed memory stays with the process. Once, first thing in main(). Without glibc nothing changes.
void set_up_heap();

// Gives all free pages back: after work whose memory is not needed again soon. Any thread; a thread that allocates
// meanwhile waits, for some milliseconds.
void give_back_heap();

}  // namespace lathe
