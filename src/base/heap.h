// The C library's heap, set for a process whose tensors come and go by the layer.
//
// Why: by default glibc moves the border between blocks of the heap and blocks of their own from 128 KiB up to 32 MiB as
// it sees large ones freed; what is kept then lies between what is not, and a training step of SmolLM2 grows from 600
// to 760 MiB. Smaller ones it gives back to the system and fetches again, page by page, for the next layer: a twentieth
// of the time of a correction. bench/cpu_bench.cpp shows both.
// Threads: once, first thing in main().
#pragma once

namespace lathe {

// From now on blocks of a MiB and more are blocks of their own, which go back to the system when they are freed, and up
// to 64 MiB of freed smaller ones stay with the process. Without glibc nothing changes.
void set_up_heap();

}  // namespace lathe
