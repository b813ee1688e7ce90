// The viewer: a page over the public API. The token travels in a header only, never in an address.
const $ = (id) => document.getElementById(id);
let token = sessionStorage.getItem("token") ?? "";
let current = null;

async function call(method, path, { body, headers = {}, raw = false } = {}) {
  const answer = await fetch(path, { method, body, headers: { Authorization: `Bearer ${token}`, ...headers } });
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({ detail: `HTTP ${answer.status}`, code: "no_answer" }));
    throw new Error(`${problem.detail} [${problem.code}]`);
  }
  return raw ? answer : answer.status === 204 ? null : answer.json();
}

function say(text, wrong = false) {
  $("message").textContent = text;
  $("message").className = wrong ? "wrong" : "";
}

const guarded = (work) => async (event) => {
  event?.preventDefault?.();
  try { await work(event); } catch (error) { say(error.message, true); }
};

async function signIn() {
  const release = await call("GET", "/v1/release");
  $("release").textContent = `${release.name} ${release.version}`;
  sessionStorage.setItem("token", token);
  document.querySelector("main").hidden = false;
  $("sign-in").hidden = true;
  say("");
  await listCases();
}

async function listCases() {
  const { cases } = await call("GET", "/v1/cases");
  $("cases").replaceChildren(...cases.map(({ id, created }) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = id.slice(0, 10);
    button.title = new Date(created * 1000).toLocaleString();
    button.setAttribute("aria-current", String(id === current));
    button.onclick = guarded(() => show(id));
    return item(button);
  }));
}

function item(...content) {
  const line = document.createElement("li");
  line.append(...content);
  return line;
}

async function show(id) {
  current = id;
  const shown = await call("GET", `/v1/cases/${id}`);
  $("case").hidden = false;
  $("case-id").textContent = id;
  $("images").replaceChildren(...shown.images.map((image) =>
    item(`${image.role} ${image.shape ? image.shape.join(" × ") : ""} ${image.warnings.join("; ")}`)));
  $("files").replaceChildren(...shown.artifacts.map((name) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.onclick = guarded(() => download(id, name));
    return item(button);
  }));
  const guides = shown.jobs.filter((job) => job.kind === "guide" && job.state === "succeeded");
  await showResult(guides.at(-1));
  await listCases();
  const running = shown.jobs.find((job) => ["queued", "running"].includes(job.state));
  if (running) await follow(running.id);
}

async function artifact(id, name, job) {
  const answer = await call("GET", `/v1/cases/${id}/artifacts/${name}${job ? `?job=${job}` : ""}`, { raw: true });
  return answer.blob();
}

async function download(id, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await artifact(id, name));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

async function showResult(job) {
  const found = Boolean(job);
  $("verdict").hidden = $("picture").hidden = !found;
  $("facts").tBodies[0].replaceChildren();
  if (!found) return;
  const { quality = {}, warnings = [] } = job.result;
  const words = { accept: "Accepted", review: "Review before use", reject: "REJECTED: do not use this registration" };
  $("verdict").className = $("picture").className = quality.status;
  $("verdict").textContent = [words[quality.status] ?? quality.status, ...(quality.reasons ?? []), ...warnings].join(" · ");
  if (job.artifacts.includes("overview.png")) $("overview").src = URL.createObjectURL(await artifact(job.case, "overview.png", job.id));
  fact("Release", `${job.result.release?.name} ${job.result.release?.version}`);
  fact("Method", quality.method);
  fact("Time", `${job.result.timings?.compute_s ?? "?"} s`);
  fact("Folding", quality.folding_fraction);
  for (const [name, mm] of Object.entries(job.result.uncertainty_mm ?? {})) fact(`Uncertainty, ${name}`, `${mm} mm`);
  for (const [name, margin] of Object.entries(job.result.margins ?? {})) fact(`Margins, ${name}`, JSON.stringify(margin));
  if (job.result.tumour_in_hole) fact("Tumour", "hidden by the probe's artefact: it was not seen");
}

function fact(name, value) {
  if (value === undefined || value === null) return;
  const row = $("facts").tBodies[0].insertRow();
  row.insertCell().textContent = name;
  row.insertCell().textContent = typeof value === "object" ? JSON.stringify(value) : String(value);
}

async function follow(id) {
  const answer = await call("GET", `/v1/jobs/${id}/events`, { raw: true });
  $("progress").hidden = false;
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "", job = null;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events.filter((part) => part.includes("data: "))) {
      job = JSON.parse(event.slice(event.indexOf("data: ") + 6));
      $("progress").value = job.progress;
      const eta = job.eta_s ? `, about ${Math.ceil(job.eta_s)} s` : "";
      $("step").textContent = job.queue_position ? `waiting, ${job.queue_position} before${eta}` : `${job.kind}: ${job.step}${eta}`;
    }
  }
  $("progress").hidden = true;
  if (job?.state === "failed") throw new Error(`${job.problem.detail} [${job.problem.code}]`);
  if (job) await show(job.case);
}

async function order(kind) {
  const headers = { "Idempotency-Key": crypto.randomUUID(), "Content-Type": "application/json" };
  const job = await call("POST", `/v1/cases/${current}/${kind}`, { body: "{}", headers });
  await follow(job.id);
}

$("sign-in").onsubmit = guarded(() => { token = $("token").value.trim(); $("token").value = ""; return signIn(); });
$("new-case").onclick = guarded(async () => {
  const made = await call("POST", "/v1/cases", { body: "{}", headers: { "Content-Type": "application/json" } });
  await show(made.id);
});
$("upload").onsubmit = guarded(async () => {
  const file = $("file").files[0];
  const type = file.name.endsWith(".zip") ? "application/zip" : "application/octet-stream";
  say(`sending ${$("role").selectedOptions[0].textContent} …`);
  await call("PUT", `/v1/cases/${current}/images/${$("role").value}`, { body: file, headers: { "Content-Type": type } });
  say("");
  $("upload").reset();
  await show(current);
});
$("plan").onclick = guarded(() => order("plan"));
$("guide").onclick = guarded(() => order("guide"));
if (token) guarded(signIn)();
