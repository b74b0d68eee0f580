/** The API as the console sees it. The token lives in this tab alone and goes away with it. */

const TOKEN_KEY = "insitu.token";

/** Takes `#token=…` out of the address before anything else can see it there: history, a screenshot, a shared link. */
export function takeTokenFromAddress() {
  const fragment = new URLSearchParams(location.hash.slice(1));
  const token = fragment.get("token");
  if (token === null) return;
  signIn(token);
  history.replaceState(null, "", fragment.has("run") ? `#/runs/${fragment.get("run")}` : "#/");
}

export const signIn = (token) => sessionStorage.setItem(TOKEN_KEY, token.trim());
export const signOut = () => sessionStorage.removeItem(TOKEN_KEY);
export const isSignedIn = () => sessionStorage.getItem(TOKEN_KEY) !== null;

/** `status` 0: no answer at all. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function send(path, { method = "GET", body, headers = {}, signal } = {}) {
  const init = { method, signal, cache: "no-store", headers: { ...headers } };
  init.headers.authorization = `Bearer ${sessionStorage.getItem(TOKEN_KEY) ?? ""}`;
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
