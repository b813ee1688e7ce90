// Outlines of liver, tumours and synthetic voxels over a NiiVue view, on a canvas of its own: layers neither hide nor fade them.
export const LIVER = 1, SYNTHETIC = 2, TUMOUR = 3;
// The same as in viewer.css and in the DICOM segmentations.
const COLOURS = { [LIVER]: [60, 220, 90], [SYNTHETIC]: [0, 229, 255], [TUMOUR]: [255, 64, 255] };
const THICK_PX = 2;

export class Contours {
  #classes = null;
  #dims = null;
  #asked = 0;

  constructor(canvas, view) {
    this.canvas = canvas;
    this.view = view;
  }

  /** Classes of voxels in RAS order, and the grid's dimensions; null clears. */
  set(classes, dims) {
    this.#classes = classes;
    this.#dims = dims;
    this.draw();
  }

  /** Draws with the next frame, once however often it is asked. */
  draw() {
    cancelAnimationFrame(this.#asked);
    this.#asked = requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    const { width, height } = this.view.canvas;
    Object.assign(this.canvas, { width, height });
    const context = this.canvas.getContext("2d");
    if (!this.#classes || !width) return;
    this.view.screenSlices.forEach((slice, n) => {
      const { left, top, width: w, height: h } = tileOf(slice);
      if (w < 2 || h < 2) return;
      context.putImageData(this.#rim(this.#cut(n, left, top, w, h), w, h), left, top);
    });
  }

  /** The class under each pixel of a tile: texture coordinates are linear in the pixel's place. */
  #cut(n, left, top, w, h) {
    const at = (x, y) => this.view.screenXY2TextureFrac(x, y, n, false);
    const [start, right, down] = [at(left + 0.5, top + 0.5), at(left + w - 0.5, top + 0.5), at(left + 0.5, top + h - 0.5)];
    const [nx, ny, nz] = this.#dims;
    const cut = new Uint8Array(w * h);
    const along = (axis, x, y) => start[axis] + ((right[axis] - start[axis]) * x) / (w - 1) + ((down[axis] - start[axis]) * y) / (h - 1);
    for (let y = 0, pixel = 0; y < h; y += 1) {
      for (let x = 0; x < w; x += 1, pixel += 1) {
        const [i, j, k] = [Math.floor(along(0, x, y) * nx), Math.floor(along(1, x, y) * ny), Math.floor(along(2, x, y) * nz)];
        if (i >= 0 && j >= 0 && k >= 0 && i < nx && j < ny && k < nz) cut[pixel] = this.#classes[i + nx * (j + ny * k)];
      }
    }
    return cut;
  }

  /** A class is outlined against what is less than it: the tumour against all, the liver against what is no organ. */
  #rim(cut, w, h) {
    const image = new ImageData(w, h);
    for (let y = 0, pixel = 0; y < h; y += 1) {
      for (let x = 0; x < w; x += 1, pixel += 1) {
        const own = cut[pixel];
        if (!own) continue;
        const least = Math.min(
          x >= THICK_PX ? cut[pixel - THICK_PX] : own, x + THICK_PX < w ? cut[pixel + THICK_PX] : own,
          y >= THICK_PX ? cut[pixel - THICK_PX * w] : own, y + THICK_PX < h ? cut[pixel + THICK_PX * w] : own,
        );
        if (least < own) image.data.set([...COLOURS[own], 255], 4 * pixel);
      }
    }
    return image;
  }
}

/** A tile's place in whole pixels; NiiVue writes mirrored tiles with a negative width. */
export function tileOf(slice) {
  const [x, y, width, height] = slice.leftTopWidthHeight;
  return {
    left: Math.round(Math.min(x, x + width)), top: Math.round(y), width: Math.round(Math.abs(width)), height: Math.round(height),
  };
}
