// A zip of stored (uncompressed) files: how a DICOM folder travels. Names are numbers: file names may name patients.
const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit += 1) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function crc32(bytes) {
  let sum = 0xffffffff;
  for (const byte of bytes) sum = TABLE[(sum ^ byte) & 0xff] ^ (sum >>> 8);
  return ~sum >>> 0;
}

const fields = (...pairs) => {
  const view = new DataView(new ArrayBuffer(pairs.reduce((size, [bytes]) => size + bytes, 0)));
  let at = 0;
  for (const [bytes, value] of pairs) {
    if (bytes === 2) view.setUint16(at, value, true);
    else view.setUint32(at, value, true);
    at += bytes;
  }
  return view.buffer;
};

/** The files as one Blob. */
export async function zipped(files) {
  const parts = [], directory = [];
  let offset = 0, listed = 0;
  for (const [number, file] of files.entries()) {
    const name = new TextEncoder().encode(`${String(number).padStart(5, "0")}.dcm`);
    const crc = crc32(new Uint8Array(await file.arrayBuffer()));
    // version, flags, method, time, date (1980-01-01), then sums and sizes
    const common = [[2, 20], [2, 0], [2, 0], [2, 0], [2, 0x21], [4, crc], [4, file.size], [4, file.size], [2, name.length], [2, 0]];
    parts.push(fields([4, 0x04034b50], ...common), name, file);
    const entry = fields([4, 0x02014b50], [2, 20], ...common, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]);
    directory.push(entry, name);
    listed += entry.byteLength + name.length;
    offset += 30 + name.length + file.size;
  }
  const count = files.length;
  const end = fields([4, 0x06054b50], [2, 0], [2, 0], [2, count], [2, count], [4, listed], [4, offset], [2, 0]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}
