// The images: the iCT below, one layer above it on a canvas of its own, so that blend and swipe are the page's;
// the contours on a third, so that neither fades or hides them.
import { Contours, LIVER, SYNTHETIC, TUMOUR, tileOf } from "/viewer/contours.js";
import { DRAG_MODE, NVImage, Niivue, SLICE_TYPE } from "/viewer/vendor/niivue-0.69.0.js";

const PLANES = {
  axial: SLICE_TYPE.AXIAL, coronal: SLICE_TYPE.CORONAL, sagittal: SLICE_TYPE.SAGITTAL, all: SLICE_TYPE.MULTIPLANAR,
};
const OPAQUE = { A: [255, 255], I: [0, 255] };
const COLOURS = {
  "layer-gray": { R: [0, 255], G: [0, 255], B: [0, 255], ...OPAQUE },
  "layer-warm": { R: [0, 255, 255], G: [0, 128, 255], B: [0, 0, 180], A: [255, 255, 255], I: [0, 128, 255] },
};
export class Stage {
  #below = viewOf();
  #above = viewOf({ backColor: [0, 0, 0, 0], crosshairWidth: 0, interactive: false });
  #lines;
  #tiles;
  #mix = { mode: "blend", share: 0.5 };
  #layer = null;
  #below0 = null;

  constructor({ below, above, lines, tiles }, onMove) {
    this.#tiles = tiles;
    this.canvases = { below, above, lines };
    this.#lines = new Contours(lines, this.#below);
    this.#below.onLocationChange = () => onMove(this.here());
    const draw = this.#below.drawScene.bind(this.#below);
    // NiiVue's own yoking follows the focus; here the upper view always follows the lower one.
    this.#below.drawScene = () => {
      const drawn = draw();
      this.#follow();
      return drawn;
    };
  }

  async open() {
    await this.#below.attachToCanvas(this.canvases.below, true);
    await this.#above.attachToCanvas(this.canvases.above, true);
    for (const [name, colours] of Object.entries(COLOURS)) this.#above.addColormap(name, colours);
  }

  /** The image below; the one above is laid on the same grid. */
  async showBelow(bytes, window) {
    const at = this.#below0 && this.#below.frac2mm(this.#below.scene.crosshairPos);
    const [lower, frame] = [await read(bytes, "gray"), await read(bytes, "gray")];
    frame.opacity = 0;
    this.#put(this.#below, [lower]);
    this.#put(this.#above, this.#layer ? [frame, this.#layer] : [frame]);
    this.#below0 = lower;
    this.window("below", window);
    if (at) this.goTo(at);
  }

  /** The image above, or none. */
  async showAbove(bytes, { window, colour = "layer-gray" } = {}) {
    const frame = this.#above.volumes[0];
    this.#layer = bytes ? await read(bytes, colour) : null;
    this.#put(this.#above, this.#layer ? [frame, this.#layer] : [frame]);
    if (window) this.window("above", window);
    this.#draw();
  }

  colour(name) {
    if (!this.#layer) return;
    this.#layer.colormap = name;
    this.#above.updateGLVolume();
  }

  /** Liver, tumours and synthetic voxels; returns where each tumour lies. */
  async outline(labels, names, synthetic) {
    const [carried, hole] = [labels && (await read(labels, "gray")), synthetic && (await read(synthetic, "gray"))];
    const grid = carried ?? hole;
    if (!grid) this.#lines.set(null);
    if (!grid) return {};
    const [values, holes] = [carried?.img2RAS(), hole?.img2RAS()];
    const classes = Uint8Array.from(values ?? holes, (value, n) => {
      const name = values ? names[value] : undefined;
      if (name?.startsWith("tumour")) return TUMOUR;
      if (holes?.[n] > 0) return SYNTHETIC;
      return name ? LIVER : 0;
    });
    this.#lines.set(classes, grid.dimsRAS.slice(1, 4));
    return carried ? centres(carried, names) : {};
  }

  contours(shown) {
    this.canvases.lines.style.visibility = shown ? "visible" : "hidden";
  }

  plane(name) {
    for (const view of [this.#below, this.#above]) view.setSliceType(PLANES[name]);
    this.#draw();
  }

  mix(mode, share) {
    this.#mix = { mode, share };
    this.#place();
  }

  window(which, { level, width }) {
    const [view, volume] = which === "below" ? [this.#below, this.#below0] : [this.#above, this.#layer];
    if (!volume) return;
    [volume.cal_min, volume.cal_max] = [level - width / 2, level + width / 2];
    view.updateGLVolume();
    this.#draw();
  }

  /** Level and width as they stand: what NiiVue found for an MR, or what was set. */
  windowOf(which) {
    const volume = which === "below" ? this.#below0 : this.#layer;
    if (!volume) return null;
    return { level: (volume.cal_max + volume.cal_min) / 2, width: volume.cal_max - volume.cal_min };
  }

  goTo(mm) {
    this.#below.scene.crosshairPos = this.#below.mm2frac(mm);
    this.#draw();
    this.#below.createOnLocationChange();
  }

  /** Moves by whole voxels along the axis that the plane cuts. */
  step(by, plane) {
    const axis = { sagittal: 0, coronal: 1 }[plane] ?? 2;
    const move = [0, 0, 0];
    move[axis] = by;
    this.#below.moveCrosshairInVox(...move);
  }

  /** Where the crosshair is, in world millimetres (RAS), and what the images say there. */
  here() {
    const mm = Array.from(this.#below.frac2mm(this.#below.scene.crosshairPos)).slice(0, 3);
    const value = (volume) => volume && volume.getValue(...volume.mm2vox([...mm, 1]));
    return { mm, below: value(this.#below0), above: value(this.#layer) };
  }

  #put(view, volumes) {
    view.volumes = [...volumes];
    view.setVolume(volumes[0], 0);
  }

  #draw() {
    this.#below.drawScene();
  }

  #follow() {
    if (this.#above.volumes.length) {
      this.#above.scene.crosshairPos = [...this.#below.scene.crosshairPos];
      this.#above.scene.pan2Dxyzmm = [...this.#below.scene.pan2Dxyzmm];
      this.#above.drawScene();
    }
    this.#lines.draw();
    this.#place();
  }

  /** Blend fades the upper view; swipe shows it right of a line in each tile. */
  #place() {
    const { mode, share } = this.#mix;
    const canvas = this.canvases.above;
    const swipes = mode === "swipe";
    canvas.style.opacity = swipes ? "1" : String(share);
    const lines = this.#below.screenSlices.map(tileOf).map(({ left, top, width, height }) =>
      [left + Math.round(width * (1 - share)), top, left + width, top + height]);
    const shown = lines.map(([x, top, right, bottom]) => `M${x} ${top}H${right}V${bottom}H${x}Z`).join("");
    canvas.style.clipPath = swipes && shown ? `path("${shown}")` : "none";
    this.#tiles.replaceChildren(...(swipes ? lines : []).map(([x, top, , bottom]) => line(x, top, bottom)));
  }
}

function viewOf(options = {}) {
  return new Niivue({
    backColor: [0, 0, 0, 1], crosshairColor: [1, 1, 1, 0.55], crosshairWidth: 0.7, crosshairWidthUnit: "mm", crosshairGap: 12,
    fontColor: [0.75, 0.8, 0.85, 1], isRadiologicalConvention: true, dragMode: DRAG_MODE.windowing,
    dragAndDropEnabled: false, forceDevicePixelRatio: 1, loadingText: "", multiplanarShowRender: 0,
    sliceType: SLICE_TYPE.AXIAL, logLevel: "error", ...options,
  });
}

const read = (bytes, colour) => NVImage.new(bytes, "image.nii.gz", colour, 1);

/** The middle of each tumour's voxels, in millimetres. */
function centres(image, names) {
  const [, nx, ny] = image.hdr.dims;
  const sums = {};
  image.img.forEach((value, n) => {
    if (!names[value]?.startsWith("tumour")) return;
    const sum = (sums[names[value]] ??= [0, 0, 0, 0]);
    [n % nx, Math.floor(n / nx) % ny, Math.floor(n / (nx * ny)), 1].forEach((part, axis) => { sum[axis] += part; });
  });
  const toWorld = (voxel) => image.hdr.affine.slice(0, 3).map((row) => row.reduce((all, a, n) => all + a * voxel[n], 0));
  return Object.fromEntries(Object.entries(sums).map(([name, sum]) => [name, toWorld(sum.map((part) => part / sum[3]))]));
}

function line(x, top, bottom) {
  const made = document.createElement("div");
  Object.assign(made.style, { left: `${x}px`, top: `${top}px`, height: `${bottom - top}px` });
  return made;
}
