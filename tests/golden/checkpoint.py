#!/usr/bin/env python3
"""Reads a checkpoint of Strata with the safetensors library alone.

    python3 -m venv venv && venv/bin/pip install numpy safetensors
    venv/bin/python tests/golden/checkpoint.py [CHECKPOINT]

Of the committed one, `checkpoint`, it compares every value with the formula that
tests/engine/checkpoint_files_test.cc made it of; without an argument. README.md says more.
"""

import json
import pathlib
import sys

import numpy
from safetensors import safe_open

HERE = pathlib.Path(__file__).parent
BLOCK = 256
# Bits of mantissa, and whether the code has a sign: kernels/ops/cpu/codecs-inl.h.
FORMATS = {"exp_avg": (3, True), "exp_avg_sq": (4, False)}
ELEMENT_BYTES = {"F32": 4, "BF16": 2, "U8": 1}


class File:
    """One safetensors file; bf16 comes as fp32."""

    def __init__(self, path):
        self.file = safe_open(path, framework="numpy")
        self.path = path
        self.names = set(self.file.keys())

    def dtype(self, name):
        return self.file.get_slice(name).get_dtype()

    def shape(self, name):
        return self.file.get_slice(name).get_shape()

    def numel(self, name):
        return int(numpy.prod(self.shape(name)))

    def read(self, name):
        if self.dtype(name) != "BF16":
            return self.file.get_tensor(name)
        # numpy has no bf16, so the bytes are taken from where the header says.
        text = self.path.read_bytes()
        header_bytes = int.from_bytes(text[:8], "little")
        begin, end = json.loads(text[8 : 8 + header_bytes])[name]["data_offsets"]
        halves = numpy.frombuffer(text[8 + header_bytes :][begin:end], numpy.uint16)
        return (halves.astype(numpy.uint32) << 16).view(numpy.float32).reshape(self.shape(name))


def decode_int8(kind, codes, scales):
    """Codes are 8-bit floats with subnormals, in units of their block's scale."""
    mantissa_bits, is_signed = FORMATS[kind]
    one = 1 << mantissa_bits
    magnitude = (codes & 0x7F if is_signed else codes).astype(numpy.int64)
    exponent = numpy.maximum((magnitude >> mantissa_bits) - 1, 0)
    mantissa = numpy.where(magnitude < one, magnitude, (magnitude & (one - 1)) + one)
    units = mantissa * 2.0**exponent
    if is_signed:
        units = numpy.where(codes & 0x80, -units, units)
    return units * numpy.repeat(scales.astype(numpy.float64), BLOCK)[: codes.size]


def formula(kind, name, numel):
    number = (numpy.arange(numel) * 37 + len(name)) % 101
    return (number + 1) / 4096 if kind == "exp_avg_sq" else (number - 50) / 64


def check_pieces(manifest, files):
    """The manifest's pieces are all bytes of all tensors."""
    for file, tensors in manifest["files"].items():
        assert set(tensors) == files[file].names, file
        for name, pieces in tensors.items():
            end = 0
            for first, count, _ in pieces:
                assert first == end, f"{file}: a gap in {name}"
                end += count
            element = ELEMENT_BYTES[files[file].dtype(name)]
            assert end == files[file].numel(name) * element, f"{file}: {name} ends at {end}"


def read_moments(kind, codec, file, name):
    values = file.read(name)
    if codec != "int8":
        return values.astype(numpy.float64)
    return decode_int8(kind, values.reshape(-1), file.read(name + ".scale")).reshape(values.shape)


def compare(kind, name, values):
    """Moments are rounded to a neighbour among the codes, all else is exact."""
    flat = values.reshape(-1).astype(numpy.float64)
    truth = formula(kind, name, flat.size)
    error = numpy.abs(flat - truth)
    if kind not in FORMATS:
        assert not error.any(), f"{kind} of {name} differs"
        return 0.0
    # A subnormal's neighbours are as far apart as the smallest normals'.
    mantissa_bits, is_signed = FORMATS[kind]
    smallest_normal = numpy.abs(truth).max() * 2.0 ** -(2 ** (7 - mantissa_bits + (not is_signed)) - 2)
    bound = numpy.maximum(numpy.abs(truth), smallest_normal) * 2.0**-mantissa_bits
    assert (error <= bound).all(), f"{kind} of {name} is {(error / bound).max():.2f} codes off"
    return (error / bound).max()


def main():
    committed = HERE / "checkpoint"
    directory = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else committed
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["format"] == "strata-checkpoint-1", manifest["format"]
    files = {file: File(directory / file) for file in manifest["files"]}
    check_pieces(manifest, files)
    print(f"{directory.name}: step {manifest['step']}, {manifest['model']}")
    for file, content in files.items():
        kind = file.removesuffix(".safetensors")
        farthest, count = 0.0, 0
        for name in sorted(content.names):
            if name.removesuffix(".scale") in content.names - {name}:
                continue
            is_moment = kind in FORMATS
            codec = manifest["moment_codec"]
            values = read_moments(kind, codec, content, name) if is_moment else content.read(name)
            assert numpy.isfinite(values).all(), f"{kind} of {name} is not finite"
            count += values.size
            if directory == committed:
                farthest = max(farthest, compare(kind, name, values))
        print(f"{kind}: {count} values in {len(content.names)} tensors", end="")
        print(f", at most {farthest:.2f} codes off" if directory == committed else "")


if __name__ == "__main__":
    main()
