// The viewer: sign in, cases, jobs as they run, results. A page over the public API and nothing else.
import { call, follow, get, hasToken, post, unfinished, useToken } from "/viewer/api.js";
import { Inputs } from "/viewer/inputs.js";
import { Look } from "/viewer/look.js";
import { $, make, say, told } from "/viewer/page.js";

const VERDICTS = {
  accept: "Accepted by the automatic checks",
  review: "REVIEW before use: the automatic checks are not sure of this registration",
  reject: "REJECTED: do not use this registration",
};
const HAVE_DICOM = /^((pmr|sct|pct|labels)_on_ict|inpct|inpainted_mask)\.nii\.gz$|^overview\.png$/;
const look = new Look();
let current = null;
let watching = new AbortController();

const inputs = new Inputs({
  opened: async () => current?.id ?? (await open()),
  changed: () => show(current.id),
  here: () => look.here,
});

async function signIn() {
  const release = await get("/v1/release");
  $("release").textContent = `release ${release.name} ${release.version}`;
  document.querySelector("main").hidden = $("sign-out").hidden = false;
  $("sign-in").hidden = true;
  say("");
  await list();
}

async function list() {
  const { cases } = await get("/v1/cases");
  $("cases").replaceChildren(...cases.map(({ id, created }) => {
    const button = make("button", { type: "button" }, id.slice(0, 10), make("small", {}, new Date(created * 1000).toLocaleString()));
    if (id === current?.id) button.ariaCurrent = "true";
    button.onclick = told(() => show(id));
    return make("li", {}, button);
  }));
}

async function open() {
  const made = await (await call("POST", "/v1/cases", { body: "{}", headers: { "Content-Type": "application/json" } })).json();
  await show(made.id);
  $("inputs").open = true;
  return made.id;
}

async function show(id) {
  watching.abort();
  const { signal } = (watching = new AbortController());
  const found = await get(`/v1/cases/${id}`, signal);
  current = found;
  $("nothing").hidden = true;
  $("opened").hidden = false;
  $("case-id").textContent = id;
  showImages(found);
  const guides = found.jobs.filter((job) => job.kind === "guide" && job.state === "succeeded").reverse();
  $("result").replaceChildren(...guides.map((job) => new Option(new Date(job.finished * 1000).toLocaleTimeString(), job.id)));
  $("result").disabled = !guides.length;
  const has = new Set(found.images.map((image) => image.role));
  const planned = found.jobs.some((job) => job.kind === "plan" && job.state === "succeeded");
  $("plan").disabled = !(has.has("pmr") && has.has("pct"));
  $("guide").disabled = !(planned && has.has("ict") && has.has("ict-probe-mask"));
  $("probe").hidden = !has.has("ict");
  showProgress(null);
  await list();
  if (signal.aborted) return;
  await showResult(guides[0]);
  if (signal.aborted) return;
  const running = found.jobs.find(unfinished);
  if (running) told(() => watch(running))();
}

function showImages({ images }) {
  $("images").tBodies[0].replaceChildren(...images.map((image) => make("tr", {},
    make("th", { scope: "row" }, image.role),
    make("td", {}, image.shape ? `${image.shape.join(" × ")} at ${image.spacing_mm.map((mm) => mm.toFixed(2)).join(" × ")} mm` : "box or polygon"),
    make("td", {}, image.warnings.join("; ")))));
  if (images.length < 4) $("inputs").open = true;
}

/** The addresses of what a result shows: the very images that the job used, and the plan it was made with. */
function placesOf(job) {
  const at = (role, owner) => `/v1/cases/${current.id}/images/${role}${owner ? `?job=${owner.id}` : ""}`;
  const made = (name, owner) => (owner?.artifacts.includes(name) ? `/v1/cases/${current.id}/artifacts/${name}?job=${owner.id}` : null);
  const found = { ict: current.images.some((image) => image.role === "ict") ? at("ict", job) : null };
  if (!job) return found;
  const plan = current.jobs.find((other) => other.kind === "plan" && other.result?.plan_digest === job.result.plan_digest);
  found.inpct = made("inpct.nii.gz", job);
  found.labels = made("labels_on_ict.nii.gz", job);
  found.hole = made("inpainted_mask.nii.gz", job);
  for (const name of ["pmr", "sct", "pct"]) {
    found[`${name}.after`] = made(`${name}_on_ict.nii.gz`, job);
    found[`${name}.before`] = made(`${name}.nii.gz`, plan);
  }
  return found;
}

async function showResult(job) {
  const quality = job?.result.quality ?? {};
  const status = job && !(quality.status in VERDICTS) ? "reject" : quality.status ?? "";
  $("verdict").hidden = !job;
  $("verdict").className = $("stage").className = $("stamp").className = status;
  $("stamp").textContent = { review: "REVIEW", reject: "REJECTED: DO NOT USE" }[status] ?? "";
  if (job) {
    const reasons = [...(quality.reasons ?? []), ...(job.result.warnings ?? [])];
    $("verdict").replaceChildren(VERDICTS[status], make("ul", {}, ...reasons.map((reason) => make("li", {}, reason))));
  }
  showTumours(job?.result);
  showFacts(job?.result);
  showFiles(job);
  await look.show(placesOf(job), job?.result.labels ?? {});
}

function showTumours(result) {
  const names = Object.values(result?.labels ?? {}).filter((name) => name.startsWith("tumour"));
  const per = (share) => (share === undefined ? "–" : `${Math.round(100 * share)} %`);
  $("tumours").tBodies[0].replaceChildren(...names.map((name) => {
    const [mm, margin] = [result.uncertainty_mm?.[name], result.margins?.[name] ?? {}];
    const cells = [mm === undefined ? "–" : `${mm.toFixed(1)} mm`, per(margin["0_mm"]), per(margin["5_mm"]), per(margin["10_mm"])];
    return make("tr", {}, make("th", { scope: "row" }, name), ...cells.map((text) => make("td", {}, text)));
  }));
  $("hole").hidden = !result?.tumour_in_hole;
}

function showFacts(result) {
  const quality = result?.quality ?? {};
  const number = (value, digits = 3) => (typeof value === "number" ? value.toFixed(digits) : undefined);
  const rows = !result ? {} : {
    Release: `${result.release?.name ?? ""} ${result.release?.version ?? ""}`,
    Method: quality.method,
    "Computed in": number(result.timings?.compute_s, 1) && `${number(result.timings.compute_s, 1)} s`,
    Similarity: number(quality.similarity_after) && `${number(quality.similarity_before)} → ${number(quality.similarity_after)}`,
    "Liver overlap (Dice)": number(quality.liver_dice),
    "Inverse consistency": number(quality.inverse_consistency_mm, 1) && `${number(quality.inverse_consistency_mm, 1)} mm`,
    Folded: number(quality.folding_fraction, 5),
    "Outside the plan's images": number(result.outside_grid_fraction, 3),
    Degraded: result.degraded ? "yes: a smaller or simpler way was taken" : undefined,
  };
  $("facts").tBodies[0].replaceChildren(...Object.entries(rows).filter(([, value]) => value).map(([name, value]) =>
    make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, value))));
}

function showFiles(job) {
  const names = job ? job.artifacts : current.artifacts;
  const dicom = current.images.some((image) => image.role === "ict" && image.dicom);
  $("downloads").hidden = !names.length;
  $("files-made").replaceChildren(...names.map((name) => {
    const links = [link(name, name, job)];
    if (dicom && HAVE_DICOM.test(name)) links.push(" ", link(name, "DICOM", job, "dicom"));
    return make("li", {}, ...links);
  }));
}

function link(name, text, job, format) {
  const button = make("button", { type: "button" }, text);
  button.onclick = told(async () => {
    const words = new URLSearchParams({ ...(job && { job: job.id }), ...(format && { format }) });
    const answer = await call("GET", `/v1/cases/${current.id}/artifacts/${name}?${words}`);
    const href = URL.createObjectURL(await answer.blob());
    make("a", { href, download: format ? `${name.replace(/\.nii\.gz$/, "")}.zip` : name }).click();
    setTimeout(() => URL.revokeObjectURL(href), 60000);
  });
  return button;
}

function showProgress(job) {
  $("progress").hidden = !job;
  $("progress").value = job?.progress ?? 0;
  const eta = job?.eta_s ? `, about ${Math.ceil(job.eta_s)} s` : "";
  $("step").textContent = !job ? "" : job.state === "queued" ? `waiting, ${job.queue_position} before${eta}` : `${job.kind}: ${job.step}${eta}`;
}

async function watch(job) {
  let last = job;
  showProgress(job);
  for await (const state of follow(job.id, watching.signal)) showProgress((last = state));
  showProgress(null);
  if (last.state === "failed") throw Object.assign(new Error(last.problem.detail), { code: last.problem.code });
  await show(last.case);
}

const order = (kind) => told(async () => {
  say("");
  await watch(await post(`/v1/cases/${current.id}/${kind}`, {}));
});

$("sign-in").onsubmit = told(async () => {
  useToken($("token").value.trim());
  $("token").value = "";
  await signIn();
});
$("sign-out").onclick = () => { useToken(""); location.reload(); };
$("new-case").onclick = told(open);
$("plan").onclick = order("plan");
$("guide").onclick = order("guide");
$("result").onchange = told(() => showResult(current.jobs.find((job) => job.id === $("result").value)));
$("erase").onclick = () => { $("sure").returnValue = ""; $("sure").showModal(); };
$("sure").onclose = told(async () => {
  if ($("sure").returnValue !== "erase") return;
  await call("DELETE", `/v1/cases/${current.id}`);
  location.reload();
});
if (hasToken()) {
  told(signIn)();
}
