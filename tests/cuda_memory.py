"""A GPU's memory that another process shares, by the driver alone: the Python that tests run in needs no torch."""

import ctypes

_SUCCESS, _LAZY_PEER_ACCESS = 0, 1


class _Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_ubyte * 64)]


class _Uuid(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_ubyte * 16)]


def _driver():
    driver = ctypes.CDLL("libcuda.so.1")
    driver.cuIpcOpenMemHandle_v2.argtypes = [ctypes.POINTER(ctypes.c_uint64), _Handle, ctypes.c_uint]
    driver.cuIpcCloseMemHandle.argtypes = [ctypes.c_uint64]
    driver.cuMemcpyDtoH_v2.argtypes = [ctypes.c_char_p, ctypes.c_uint64, ctypes.c_size_t]
    driver.cuMemcpyHtoD_v2.argtypes = [ctypes.c_uint64, ctypes.c_char_p, ctypes.c_size_t]
    return driver


def _check(code, what):
    if code != _SUCCESS:
        raise RuntimeError(f"{what}: CUDA error {code}")


class CudaMemory:
    """A memory of a manifest (docs/formats/manifest.md) of kind cuda_ipc."""

    def __init__(self, memory):
        self._driver = _driver()
        _check(self._driver.cuInit(0), "cuInit")
        context = ctypes.c_void_p()
        _check(self._driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), self._device(memory["uuid"])), "cuDevicePrimaryCtxRetain")
        _check(self._driver.cuCtxSetCurrent(context), "cuCtxSetCurrent")
        self._begin = ctypes.c_uint64()
        handle = _Handle.from_buffer_copy(bytes.fromhex(memory["handle"]))
        _check(self._driver.cuIpcOpenMemHandle_v2(ctypes.byref(self._begin), handle, _LAZY_PEER_ACCESS), "cuIpcOpenMemHandle")

    def _device(self, uuid):
        count, found = ctypes.c_int(), _Uuid()
        _check(self._driver.cuDeviceGetCount(ctypes.byref(count)), "cuDeviceGetCount")
        for device in range(count.value):
            _check(self._driver.cuDeviceGetUuid_v2(ctypes.byref(found), device), "cuDeviceGetUuid")
            if bytes(found.bytes).hex() == uuid.removeprefix("GPU-").replace("-", ""):
                return device
        raise RuntimeError(f"no GPU {uuid} here")

    def read(self, offset, size):
        data = ctypes.create_string_buffer(size)
        _check(self._driver.cuMemcpyDtoH_v2(data, self._begin.value + offset, size), "cuMemcpyDtoH")
        return data.raw

    def write(self, offset, data):
        _check(self._driver.cuMemcpyHtoD_v2(self._begin.value + offset, data, len(data)), "cuMemcpyHtoD")
        _check(self._driver.cuCtxSynchronize(), "cuCtxSynchronize")  # of a small piece the copy may still be under way

    def close(self):
        _check(self._driver.cuIpcCloseMemHandle(self._begin), "cuIpcCloseMemHandle")
