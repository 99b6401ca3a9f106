# Owns making a browser's picture small enough to be kept in the repository: 256 colours instead of all, and more patience
# in compressing. small_png.py FROM TO; only what browsers write is read: 8 bits a channel, not interlaced.
# Format: https://www.w3.org/TR/png-3/
import struct
import sys
import zlib


def chunks(data):
    at = 8
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        yield kind, data[at + 8 : at + 8 + length]
        at += 12 + length


def lines(raw, stride, bpp):
    before = bytearray(stride)
    for start in range(0, len(raw), stride + 1):
        kind, line = raw[start], bytearray(raw[start + 1 : start + 1 + stride])
        for i in range(stride if kind else 0):
            left, up = line[i - bpp] if i >= bpp else 0, before[i]
            corner = before[i - bpp] if i >= bpp else 0
            if kind == 4:
                a, b, c = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
                guess = left if a <= b and a <= c else up if b <= c else corner
            else:
                guess = (0, left, up, (left + up) // 2)[kind]
            line[i] = (line[i] + guess) & 255
        yield line
        before = line


source, target = sys.argv[1:]
data = open(source, "rb").read()
head = next(body for kind, body in chunks(data) if kind == b"IHDR")
width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", head)
if depth != 8 or colour not in (2, 6) or interlaced:
    sys.exit(f"{source}: {depth} bits, colour type {colour}, interlaced {interlaced}")
bpp = 3 if colour == 2 else 4
raw = zlib.decompress(b"".join(body for kind, body in chunks(data) if kind == b"IDAT"))
rows = [[bytes(line[i : i + 3]) for i in range(0, len(line), bpp)] for line in lines(raw, width * bpp, bpp)]
counts = {}
for row in rows:
    for pixel in row:
        counts[pixel] = counts.get(pixel, 0) + 1
palette = sorted(counts, key=counts.get, reverse=True)[:256]
number = {pixel: at for at, pixel in enumerate(palette)}
for pixel in counts:
    if pixel not in number:
        nearest = min(palette, key=lambda other: sum((a - b) ** 2 for a, b in zip(pixel, other)))
        number[pixel] = number[nearest]
body = zlib.compress(b"".join(b"\0" + bytes(number[pixel] for pixel in row) for row in rows), 9)
with open(target, "wb") as out:
    out.write(b"\x89PNG\r\n\x1a\n")
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    for kind, part in [(b"IHDR", header), (b"PLTE", b"".join(palette)), (b"IDAT", body), (b"IEND", b"")]:
        out.write(struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part)))
