// What the stage shows and how: images of a result, windows, mix, planes, keys.
import { call } from "/viewer/api.js";
import { $, make, pick, radio, radios, told } from "/viewer/page.js";

const CT_WINDOWS = {
  "Soft tissue": { level: 40, width: 400 }, Liver: { level: 80, width: 180 }, Bone: { level: 400, width: 1800 },
  Lung: { level: -600, width: 1500 }, Everything: { level: 0, width: 2000 },
};
const KEYS = {
  "1 2 3 4": "axial, coronal, sagittal, all planes", "↑ ↓": "slice", "[ ]": "mix", X: "blend or swipe", M: "MR", S: "synthetic CT",
  P: "planning CT", N: "nothing above", I: "inpainted or as it came", B: "before or after", C: "contours", T: "to the tumour",
  W: "next CT window",
};
const PLANE_KEYS = { 1: "axial", 2: "coronal", 3: "sagittal", 4: "all" };
const ABOVE_KEYS = { m: "pmr", s: "sct", p: "pct", n: "none" };

export class Look {
  #stage = null;
  #images = new Map();
  #shown = {};
  #places = {};
  #nextTumour = 0;
  #mrWindow = null;
  #turn = Promise.resolve();
  #latest = 0;

  constructor() {
    for (const name of Object.keys(CT_WINDOWS)) $("window").append(new Option(name));
    this.#fillWindow();
    $("window").onchange = () => { this.#fillWindow(); this.#windows(); };
    for (const id of ["ct-level", "ct-width", "mr-level", "mr-width"]) $(id).onchange = () => this.#windows(id.startsWith("mr"));
    for (const name of ["below", "above", "when"]) radios(name).forEach((input) => { input.onchange = told(() => this.refresh()); });
    for (const input of radios("plane")) input.onchange = () => this.#stage.plane(input.value);
    for (const input of radios("mode")) input.onchange = () => this.#mix();
    $("share").oninput = () => this.#mix();
    $("warm").onchange = () => this.#stage.colour(this.#colour());
    $("contours").onchange = () => this.#stage.contours($("contours").checked);
    $("to-tumour").onclick = () => this.#toTumour();
    $("keys-known").replaceChildren(...Object.entries(KEYS).flatMap(([key, does]) =>
      [make("dt", {}, make("kbd", {}, key)), make("dd", {}, does)]));
    document.addEventListener("keydown", (event) => this.#key(event));
    // NiiVue has keys of its own on its canvas; here one set of keys holds for the whole page.
    $("stage").addEventListener("keydown", (event) => event.stopPropagation(), { capture: true });
    $("stage").addEventListener("keydown", (event) => this.#key(event), { capture: true });
  }

  get here() {
    return this.#stage?.here();
  }

  /**
   * Shows a case.
   * @param places - addresses by name: ict, inpct, {pmr,sct,pct}.{after,before}, labels, hole; what is not there is absent
   * @param names - what the label map's values mean
   */
  show(places, names) {
    const turn = (this.#latest += 1);
    // Until its own images are there, nothing may be seen under a result's verdict.
    $("stage").ariaBusy = "true";
    $("readout").textContent = "";
    return this.#after(async () => {
      if (turn !== this.#latest) return;
      await this.#show(places, names);
      if (turn === this.#latest) $("stage").ariaBusy = "false";
    });
  }

  async #show(places, names) {
    $("viewer").hidden = !places.ict;
    if (!places.ict) return;
    this.#images.clear();
    this.#shown = {};
    this.#mrWindow = null;
    this.#at = places;
    await this.#open();
    for (const input of radios("below")) input.disabled = !places[input.value];
    for (const input of radios("above")) input.disabled = input.value !== "none" && !places[`${input.value}.after`];
    if (radios("below").find((input) => input.checked).disabled) pick("below", "ict");
    if (radios("above").find((input) => input.checked).disabled) pick("above", places["pmr.after"] ? "pmr" : "none");
    await this.#refresh();
    this.#places = await this.#stage.outline(await this.#bytes("labels"), names, await this.#bytes("hole"));
    this.#nextTumour = 0;
    $("to-tumour").disabled = !Object.keys(this.#places).length;
    this.#toTumour();
    this.#read(this.#stage.here());
  }

  #at = {};

  /** Brings the stage to what the controls say. */
  refresh() {
    return this.#after(() => this.#refresh());
  }

  /** One change of the images after the other. */
  #after(change) {
    this.#turn = this.#turn.catch(() => {}).then(change);
    return this.#turn;
  }

  async #refresh() {
    const [below, above, when] = [radio("below"), radio("above"), radio("when")];
    for (const input of radios("when")) input.disabled = input.value === "before" && !this.#at[`${above}.before`];
    const wanted = above === "none" ? null : `${above}.${this.#at[`${above}.${when}`] ? when : "after"}`;
    if (this.#shown.below !== below) {
      await this.#stage.showBelow(await this.#bytes(below), this.#ctWindow());
      this.#shown.below = below;
    }
    if (this.#shown.above !== wanted) {
      const window = above === "pmr" ? this.#mrWindow : this.#ctWindow();
      await this.#stage.showAbove(wanted && (await this.#bytes(wanted)), { window, colour: this.#colour() });
      this.#shown.above = wanted;
      if (above === "pmr") this.#fillMr();
    }
    $("synthetic").hidden = below !== "inpct";
    this.#mix();
  }

  async #open() {
    if (this.#stage) return;
    const { Stage } = await import("/viewer/stage.js");
    const stage = new Stage({ below: $("below"), above: $("above"), lines: $("lines"), tiles: $("tiles") }, (here) => this.#read(here));
    await stage.open();
    this.#stage = stage;
  }

  async #bytes(name) {
    if (!this.#at[name]) return null;
    if (!this.#images.has(name)) this.#images.set(name, await (await call("GET", this.#at[name])).arrayBuffer());
    return this.#images.get(name).slice(0);
  }

  #read({ mm, below, above }) {
    const at = mm.map((part) => part.toFixed(1)).join(", ");
    const layer = { pmr: "MR", sct: "synthetic CT", pct: "planning CT" }[radio("above")];
    const values = [`CT ${Math.round(below)} HU`, layer && above !== undefined && above !== null ? `${layer} ${Math.round(above)}` : ""];
    $("readout").textContent = [`${at} mm (RAS)`, ...values].filter(Boolean).join(" · ");
  }

  #ctWindow() {
    return { level: Number($("ct-level").value), width: Math.max(1, Number($("ct-width").value)) };
  }

  #fillWindow() {
    const { level, width } = CT_WINDOWS[$("window").value];
    [$("ct-level").value, $("ct-width").value] = [level, width];
  }

  #fillMr() {
    const { level, width } = this.#stage.windowOf("above");
    this.#mrWindow = { level, width };
    [$("mr-level").value, $("mr-width").value] = [level, width].map((value) => Number(value.toPrecision(4)));
  }

  #windows(mr = false) {
    if (mr) this.#mrWindow = { level: Number($("mr-level").value), width: Number($("mr-width").value) || 1 };
    else this.#stage.window("below", this.#ctWindow());
    if ((radio("above") === "pmr") === mr) this.#stage.window("above", mr ? this.#mrWindow : this.#ctWindow());
  }

  #colour() {
    return $("warm").checked ? "layer-warm" : "layer-gray";
  }

  #mix() {
    this.#stage?.mix(radio("mode"), radio("above") === "none" ? 0 : Number($("share").value) / 100);
  }

  #toTumour() {
    const places = Object.values(this.#places);
    if (places.length) this.#stage.goTo(places[this.#nextTumour++ % places.length]);
  }

  #key(event) {
    const busy = event.target.closest("input:not([type=radio]):not([type=checkbox]), select, textarea, dialog");
    if (busy || event.ctrlKey || event.altKey || event.metaKey || $("viewer").hidden || !this.#stage) return;
    const slices = event.target.closest("#stage") && { ArrowUp: 1, ArrowDown: -1, PageUp: 5, PageDown: -5 }[event.key];
    if (slices) this.#stage.step(slices, radio("plane"));
    else if (!$("keys").checked || !this.#letter(event.key.toLowerCase())) return;
    event.preventDefault();
  }

  #letter(key) {
    const press = (name, value) => { if (pick(name, value)) told(() => this.refresh())(); };
    const other = (name) => radios(name).find((input) => !input.checked).value;
    const tick = (id) => { $(id).click(); };
    const mix = (by) => { $("share").value = Number($("share").value) + by; this.#mix(); };
    const actions = {
      i: () => press("below", other("below")),
      b: () => press("when", other("when")),
      x: () => { pick("mode", other("mode")); this.#mix(); },
      c: () => tick("contours"),
      t: () => this.#toTumour(),
      "[": () => mix(-5),
      "]": () => mix(5),
      w: () => {
        $("window").selectedIndex = ($("window").selectedIndex + 1) % $("window").length;
        $("window").onchange();
      },
    };
    if (key in PLANE_KEYS) {
      pick("plane", PLANE_KEYS[key]);
      this.#stage.plane(PLANE_KEYS[key]);
    } else if (key in ABOVE_KEYS) press("above", ABOVE_KEYS[key]);
    else if (key in actions) actions[key]();
    else return false;
    return true;
  }
}
