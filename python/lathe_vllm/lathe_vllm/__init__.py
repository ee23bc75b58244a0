"""Lets `lathe attach` teach the model that a running vLLM serves, in vLLM's own memory.

plugin     general plugin: keeps weights where they can be shared, adds the worker's methods
worker     what runs in the worker: the manifest of its weights, restoring them
arena      weights of a CPU worker in one shared memory file
cuda_ipc   weights of a CUDA worker as inter-process handles
conditions which ways of running vLLM keep its weights from being taught
engine     pause, resume and worker calls: in the API server's process, or over HTTP
session    the Unix socket on which a trainer learns where the weights are and asks for pauses; the watchdog
endpoint   endpoint plugin: the session in the API server, its state over HTTP
__main__   the session in a process of its own, for versions of vLLM without endpoint plugins

Only plugin, worker, arena, cuda_ipc and endpoint run inside vLLM; the others need nothing but the standard library.
Protocol: docs/protocols/vllm.md. Manifest: docs/formats/manifest.md.
"""

__version__ = "0.1.0"
PROTOCOL = 1
MANIFEST_FORMAT = "lathe manifest 1"
