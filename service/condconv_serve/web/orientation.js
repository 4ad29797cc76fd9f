// WebP images that their EXIF data says how to turn: the server turns them, and browsers don't. For all other formats they
// agree. The page shows a turned copy, so that what was found in the image lies where it is seen.

const ORIENTATION = 0x0112;
// By orientation: how a canvas has to be transformed, for an image of width w and height h as it is stored.
const TURNS = {
  2: (w) => [-1, 0, 0, 1, w, 0],
  3: (w, h) => [-1, 0, 0, -1, w, h],
  4: (_w, h) => [1, 0, 0, -1, 0, h],
  5: () => [0, 1, 1, 0, 0, 0],
  6: (_w, h) => [0, 1, -1, 0, h, 0],
  7: (w, h) => [0, -1, -1, 0, h, w],
  8: (w) => [0, -1, 1, 0, 0, w],
};

/** An upright copy of an image file that browsers don't turn; null for those that they show as they are meant. */
export async function upright(file) {
  try {
    if ((await text(file, 0, 4)) !== "RIFF" || (await text(file, 8, 12)) !== "WEBP") return null;
    const data = new DataView(await file.arrayBuffer());
    const at = exifChunk(data);
    const turn = at === null ? null : TURNS[orientation(data, at)];
    if (!turn) return null;
    new Uint8Array(data.buffer).set([0x58, 0x58, 0x58, 0x58], at); // hidden, so that no browser turns it a second time
    const image = await createImageBitmap(new Blob([data.buffer], { type: "image/webp" }));
    const { width, height } = image;
    const matrix = turn(width, height);
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = matrix[0] ? [width, height] : [height, width];
    const context = canvas.getContext("2d");
    context.setTransform(...matrix);
    context.drawImage(image, 0, 0);
    return await new Promise((resolve) => canvas.toBlob(resolve));
  } catch {
    return null; // It can't be read, which the server will say.
  }
}

const text = (file, from, to) => file.slice(from, to).text();

/** Where the chunk of EXIF data begins. */
function exifChunk(data) {
  for (let at = 12; at + 8 <= data.byteLength; ) {
    if (data.getUint32(at) === 0x45584946) return at;
    const size = data.getUint32(at + 4, true);
    at += 8 + size + (size % 2);
  }
  return null;
}

/** The orientation, 1 to 8, that a chunk of EXIF data tells. */
function orientation(data, chunk) {
  const start = chunk + 8 + (data.getUint32(chunk + 8) === 0x45786966 ? 6 : 0); // "Exif\0\0" may come first
  const little = data.getUint16(start) === 0x4949;
  const directory = start + data.getUint32(start + 4, little);
  for (let entry = 0; entry < data.getUint16(directory, little); entry += 1) {
    const at = directory + 2 + 12 * entry;
    if (data.getUint16(at, little) === ORIENTATION) return data.getUint16(at + 8, little);
  }
  return 1;
}
