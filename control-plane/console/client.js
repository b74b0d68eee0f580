/** The API as the console sees it. */
import { tokenOfTab } from "./session.js";

/** `status` 0: no answer at all. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function send(path, { method = "GET", body, headers = {}, signal } = {}) {
  const init = { method, signal, cache: "no-store", headers: { ...headers } };
  const token = tokenOfTab();
  if (token !== null) init.headers.authorization = `Bearer ${token}`;
  if (body !== undefined) {
    init.body = JSON.stringify(body);
    init.headers["content-type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(path, init);
  } catch (err) {
    if (signal?.aborted) throw err;
    throw new ApiError(0, "The server does not answer.");
  }
  // 202: nothing has happened yet, a second person has to approve it.
  if (response.ok && response.status !== 202) return response;
  const problem = await response.json().catch(() => ({}));
  throw new ApiError(response.status, problem.detail ?? `The server answered ${response.status}.`);
}

export const read = async (path, signal) => (await send(path, { signal })).json();
export const post = async (path, body) => (await send(path, { method: "POST", body })).json();

/** The lines of an answer that grows while it is read. */
async function* lines(path, options) {
  const response = await send(path, options);
  let rest = "";
  for await (const text of chunks(response.body.pipeThrough(new TextDecoderStream()))) {
    const parts = (rest + text).split("\n");
    rest = parts.pop();
    yield* parts;
  }
}

/** Not every browser iterates over streams yet. */
async function* chunks(stream) {
  const reader = stream.getReader();
  try {
    for (let next = await reader.read(); !next.done; next = await reader.read()) yield next.value;
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Sequences of a run's events after `after`; returns true when the run has ended, false when the stream broke. */
export async function* follow(runId, after, signal) {
  const headers = { "last-event-id": String(after) };
  for await (const line of lines(`/v1/runs/${encodeURIComponent(runId)}/events`, { headers, signal })) {
    if (line.startsWith("id: ")) yield Number(line.slice(4));
    if (line === "event: end") return true;
  }
  return false;
}

/** Log entries of one step, those to come too. */
export async function* followLogs(runId, stepId, signal) {
  const query = new URLSearchParams({ step: stepId, follow: "true" });
  for await (const line of lines(`/v1/runs/${encodeURIComponent(runId)}/logs?${query}`, { signal })) {
    if (line !== "") yield JSON.parse(line);
  }
}
