
const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let i = 0; i < 8; i++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function crc32(bytes) {
  let crc = -1;
  for (const byte of bytes) crc = CRC[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ -1) >>> 0;
}

// Little-endian fields, given as pairs of bytes and value.
function fields(...pairs) {
  const out = new DataView(new ArrayBuffer(pairs.reduce((sum, [bytes]) => sum + bytes, 0)));
  let place = 0;
  for (const [bytes, value] of pairs) {
    if (bytes === 4) out.setUint32(place, value, true); else out.setUint16(place, value, true);
    place += bytes;
  }
  return out.buffer;
}

// A ZIP archive of files, { name, blob }, stored without compression: PNG is compressed already. At most 4 GB.
async function zipped(files, now = new Date()) {
  const time = now.getHours() << 11 | now.getMinutes() << 5 | now.getSeconds() >> 1;
  const date = now.getFullYear() - 1980 << 9 | now.getMonth() + 1 << 5 | now.getDate();
  const parts = [], directory = [];
  let place = 0, size = 0;
  for (const { name, blob } of files) {
    const text = new TextEncoder().encode(name), crc = crc32(new Uint8Array(await blob.arrayBuffer()));
    // version 2.0, names in UTF-8, stored
    const common = [[2, 20], [2, 0x800], [2, 0], [2, time], [2, date], [4, crc], [4, blob.size], [4, blob.size], [2, text.length], [2, 0]];
    parts.push(fields([4, 0x04034b50], ...common), text, blob);
    directory.push(fields([4, 0x02014b50], [2, 20], ...common, [2, 0], [2, 0], [2, 0], [4, 0], [4, place]), text);
    place += 30 + text.length + blob.size;
    size += 46 + text.length;
  }
  const end = fields([4, 0x06054b50], [2, 0], [2, 0], [2, files.length], [2, files.length], [4, size], [4, place], [2, 0]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}
