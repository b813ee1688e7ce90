// Calls to the service. The token travels in a header only, never in an address.
const KEPT_AS = "hepalign-token";
let token = sessionStorage.getItem(KEPT_AS) ?? "";

export const hasToken = () => token !== "";

export function useToken(value) {
  token = value;
  if (value) sessionStorage.setItem(KEPT_AS, value);
  else sessionStorage.removeItem(KEPT_AS);
}

/** A problem document: its words for people, its code for machines. */
export class Refusal extends Error {
  constructor({ detail, code, status }) {
    super(detail);
    this.code = code;
    this.status = status;
  }
}

function refusal(status, text) {
  try {
    return new Refusal(JSON.parse(text));
  } catch {
    return new Refusal({ detail: `the service answered ${status}`, code: "no_answer", status });
  }
}

export async function call(method, path, { body, headers = {}, signal } = {}) {
  const answer = await fetch(path, { method, body, signal, headers: { Authorization: `Bearer ${token}`, ...headers } });
  if (!answer.ok) throw refusal(answer.status, await answer.text());
  return answer;
}

export const get = async (path, signal) => (await call("GET", path, { signal })).json();

export async function post(path, content) {
  const headers = { "Content-Type": "application/json", "Idempotency-Key": crypto.randomUUID() };
  return (await call("POST", path, { body: JSON.stringify(content), headers })).json();
}

/** Sends a file; fetch tells nothing of an upload's progress, XMLHttpRequest does. */
export function upload(path, content, type, onProgress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("PUT", path);
    request.setRequestHeader("Authorization", `Bearer ${token}`);
    request.setRequestHeader("Content-Type", type);
    request.upload.onprogress = ({ loaded, total }) => onProgress(total ? loaded / total : 0);
    request.onerror = () => reject(new Refusal({ detail: "the connection was lost", code: "no_answer", status: 0 }));
    request.onload = () => (request.status < 400
      ? resolve(JSON.parse(request.responseText))
      : reject(refusal(request.status, request.responseText)));
    request.send(content);
  });
}

export const unfinished = (job) => job.state === "queued" || job.state === "running";

/** A job's states as the service tells them, until it ends; a lost connection is taken up again. */
export async function* follow(job, signal) {
  for (let lost = 0; lost < 20; lost += 1) {
    try {
      const answer = await call("GET", `/v1/jobs/${job}/events`, { signal });
      for await (const state of states(answer.body)) {
        lost = 0;
        yield state;
        if (!unfinished(state)) return;
      }
    } catch (error) {
      if (signal.aborted || (error instanceof Refusal && error.status < 500)) throw error;
    }
    await new Promise((resume) => setTimeout(resume, 1000));
  }
  throw new Refusal({ detail: "the connection was lost; the job goes on", code: "no_answer", status: 0 });
}

async function* states(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (text + value).split("\n\n");
    text = events.pop();
    for (const event of events) {
      const data = event.split("\n").find((line) => line.startsWith("data: "));
      if (data) yield JSON.parse(data.slice(6));
    }
  }
}
