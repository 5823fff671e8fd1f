"""GDCM in a process of its own, because it aborts on some damaged files and would end the whole run.

The process is started once and gets one file after another through its pipes; when it dies, only the file that killed
it is lost. ``python -m data_prep.isolated`` is that process.
"""

from __future__ import annotations

import io
import os
import select
import struct
import subprocess
import sys
from typing import IO

import numpy as np

from data_prep.cases import Rejected

__all__ = ["IsolatedDecoder"]

SECONDS = 60
"""Longest time that one file may take."""

_LENGTH = struct.Struct(">Q")
_NPY = b"\x93NUMPY"


class IsolatedDecoder:
    """Decodes DICOM files with GDCM in another process, which is started when it is first needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def decode(self, data: bytes) -> np.ndarray:
        """The stored values of a DICOM file, given as its bytes.

        Raises:
            Rejected: when the file cannot be decoded, or the process dies of it or takes too long.
        """
        process = self._process
        if process is None or process.poll() is not None:
            process = self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # GDCM prints what it finds in the file
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        assert process.stdin is not None and process.stdout is not None
        try:
            _send(process.stdin, data)
            if not select.select([process.stdout], [], [], SECONDS)[0]:
                raise EOFError
            reply = _receive(process.stdout)
        except (OSError, EOFError):
            process.kill()
            process.communicate()
            self._process = None
            raise Rejected("unreadable", "the decoder does not survive the file") from None
        if not reply.startswith(_NPY):
            raise Rejected("unreadable", f"the compressed data cannot be decoded ({reply.decode()})")
        return np.load(io.BytesIO(reply), allow_pickle=False)


def _send(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(_LENGTH.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes:
    """What :func:`_send` sent.

    Raises:
        EOFError: when the other end is closed.
    """
    head = pipe.read(_LENGTH.size)
    data = pipe.read(_LENGTH.unpack(head)[0]) if len(head) == _LENGTH.size else b""
    if len(head) < _LENGTH.size or len(data) < _LENGTH.unpack(head)[0]:
        raise EOFError
    return data


def _serve() -> None:
    """Answer until the pipe is closed: the array as .npy, or the type of the error that a damaged file has caused."""
    import pydicom  # not needed by the process that asks

    while True:
        try:
            data = _receive(sys.stdin.buffer)
        except EOFError:
            return
        stream = io.BytesIO()
        try:
            dataset = pydicom.dcmread(io.BytesIO(data))
            dataset.pixel_array_options(decoding_plugin="gdcm")
            np.save(stream, dataset.pixel_array, allow_pickle=False)
        except Exception as error:
            stream = io.BytesIO(type(error).__name__.encode())
        _send(sys.stdout.buffer, stream.getvalue())


if __name__ == "__main__":
    _serve()
