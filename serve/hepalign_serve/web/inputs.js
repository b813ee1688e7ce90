// The case's images: dropped or picked, given a role, sent; and the probe mask as a box between two corners.
import { upload } from "/viewer/api.js";
import { $, make, say, told } from "/viewer/page.js";
import { zipped } from "/viewer/zip.js";

const ROLES = {
  "": "do not send", pmr: "pMR", pct: "pCT", ict: "iCT", "ict-probe-mask": "Probe mask",
  "pmr-tumour": "Tumour on pMR", "pct-tumour": "Tumour on pCT", "pmr-liver": "Liver on pMR", "pct-liver": "Liver on pCT",
  "ict-liver": "Liver on iCT", "ict-tumour": "Tumour on iCT", "ict-ablation": "Ablation zone on iCT",
};

/** The role that a file's name says; none for what is not an image of a case (landmarks, truths). */
export function roleOf(name) {
  const words = name.toLowerCase().replace(/\.(nii(\.gz)?|zip|json|dcm)$/, "").replaceAll("tumor", "tumour").replace(/[^a-z]+/g, "-");
  if (/truth|clean|landmark|true/.test(words)) return "";
  if (/probe/.test(words)) return "ict-probe-mask";
  const whose = words.match(/(^|-)(pmr|pct|ict)(-|$)/)?.[2] ?? (/(^|-)mri?(-|$)/.test(words) ? "pmr" : "");
  const part = words.match(/(^|-)(liver|tumour|ablation)(-|$)/)?.[2];
  const role = part ? `${whose}-${part}` : whose;
  return role in ROLES ? role : "";
}

const isDicom = async (file) => (await file.slice(128, 132).text()) === "DICM";

/** Files as they can be sent: DICOM files of one folder become one zip, the rest go as they are. */
async function gathered(files) {
  const folders = new Map(), others = [];
  for (const { file, folder } of files) {
    if (/\.(nii|nii\.gz|zip|json)$/i.test(file.name)) others.push({ name: file.name, content: async () => file, type: typeOf(file.name) });
    else if (await isDicom(file)) folders.set(folder, [...(folders.get(folder) ?? []), file]);
  }
  for (const [folder, slices] of folders) {
    others.push({ name: folder || "DICOM", content: () => zipped(slices), type: "application/zip", count: slices.length });
  }
  return others;
}

const typeOf = (name) => (/\.zip$/i.test(name) ? "application/zip" : /\.json$/i.test(name) ? "application/json" : "application/octet-stream");

export class Inputs {
  #waiting = [];

  /** `opened()` gives the case to send to (a new one where none is open), `changed()` is called after a sending. */
  constructor({ opened, changed, here }) {
    this.opened = opened;
    this.changed = changed;
    this.here = here;
    this.first = null;
    for (const id of ["files", "folder"]) {
      $(id).onchange = told(async () => {
        await this.#add([...$(id).files].map((file) => ({ file, folder: folderOf(file.webkitRelativePath) })));
        $(id).value = "";
      });
    }
    $("sending").onsubmit = told(() => this.#send());
    $("corner").onclick = told(() => this.#corner());
    document.ondragover = (event) => { event.preventDefault(); document.body.classList.add("dropping"); };
    document.ondragleave = () => document.body.classList.remove("dropping");
    document.ondrop = told(async (event) => {
      document.body.classList.remove("dropping");
      if ($("sign-out").hidden) throw new Error("sign in first");
      await this.#add(await dropped(event.dataTransfer));
    });
  }

  async #add(files) {
    const found = await gathered(files);
    if (!found.length) throw new Error("none of these is a NIfTI file, a DICOM series or a probe mask");
    await this.opened();
    $("inputs").open = true;
    this.#waiting.push(...found);
    this.#show();
  }

  #show() {
    $("send").hidden = !this.#waiting.length;
    $("waiting").replaceChildren(...this.#waiting.map((entry) => {
      const select = make("select", { ariaLabel: `Role of ${entry.name}` });
      for (const [role, title] of Object.entries(ROLES)) select.append(new Option(title, role));
      select.value = entry.role ??= roleOf(entry.name);
      select.onchange = () => { entry.role = select.value; };
      return make("li", {}, select, entry.name, entry.count ? ` (${entry.count} files)` : "");
    }));
  }

  async #send() {
    const id = await this.opened();
    while (this.#waiting.length) {
      const entry = this.#waiting[0];
      if (entry.role) {
        const title = ROLES[entry.role];
        say(`sending ${title} …`);
        await upload(`/v1/cases/${id}/images/${entry.role}`, await entry.content(), entry.type, (share) =>
          say(`sending ${title}: ${Math.round(100 * share)} %`));
      }
      this.#waiting.shift();
      this.#show();
    }
    say("");
    await this.changed();
  }

  /** Two corners under the crosshair make the box. */
  async #corner() {
    const at = this.here()?.mm;
    if (!at) throw new Error("send the iCT first");
    if (!this.first) {
      this.first = at;
      $("corner").textContent = "Opposite corner here";
      return;
    }
    const [low, high] = [Math.min, Math.max].map((end) => at.map((mm, axis) => end(mm, this.first[axis])));
    this.first = null;
    $("corner").textContent = "First corner here";
    const box = new Blob([JSON.stringify({ kind: "box", low_mm: low, high_mm: high })]);
    await upload(`/v1/cases/${await this.opened()}/images/ict-probe-mask`, box, "application/json", () => {});
    say("the probe mask is set");
    await this.changed();
  }
}

const folderOf = (path) => path.split("/").slice(0, -1).join("/");

async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => ({ file, folder: "" }));
  return (await Promise.all(entries.map(inside))).flat();
}

async function inside(entry) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [{ file, folder: folderOf(entry.fullPath) }];
  }
  const reader = entry.createReader(), found = [];
  // A folder is told in portions until one is empty.
  for (;;) {
    const portion = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!portion.length) return (await Promise.all(found.map(inside))).flat();
    found.push(...portion);
  }
}
