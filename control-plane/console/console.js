/** The console: which page is shown, what it reads, and how it stays up to date. */
import { ApiError, follow, followLogs, post, read } from "./client.js";
import { h, icon, patch } from "./dom.js";
import {
  dropLink,
  forget,
  hasLink,
  identityProvider,
  isSignedIn,
  keepPlace,
  loadMe,
  redeemLink,
  signInWith,
  signOut,
  takeFromAddress,
  takeNotice,
  tokenOfTab,
  who,
} from "./session.js";
import { firstAdminView, signInView, welcomeView } from "./sign-in-views.js";
import { failedView, overview, runView } from "./views.js";

const POLL_MS = 2000;
const LOG_MAX_CHARS = 1_000_000;
/** Colours and cursor movements of terminals. */
const ANSI = (() => {
  const [ESC, BEL] = [String.fromCharCode(27), String.fromCharCode(7)];
  return new RegExp(`${ESC}\\[[0-9;?]*[ -/]*[@-~]|${ESC}\\][^${BEL}]*${BEL}`, "g");
})();

const view = document.getElementById("view");
let page = { stop: new AbortController(), key: "" };
let log = { stop: new AbortController(), key: "" };
let current = null;

takeFromAddress();
addEventListener("hashchange", open);
document.addEventListener("submit", onSubmit);
document.addEventListener("click", onClick);
document.addEventListener("keydown", onKey);
setInterval(() => document.hidden || current?.draw(), 1000);
void start();

async function start() {
  await loadMe();
  open();
}

function route() {
  const [, what, id, step] = location.hash.split("/").map(decodeURIComponent);
  return what === "runs" && id ? { run: id, step: step ?? null } : { run: null, step: null };
}

/** Shows what the address says. A step of the run that is open needs no new reading. */
function open() {
  takeFromAddress();
  const { run, step } = route();
  crumbs(run, step);
  badge();
  const key = hasLink() ? "link" : !isSignedIn() ? "sign-in" : isWelcome() ? "welcome" : `run ${run}`;
  if (page.key === key) return current?.draw();
  page.stop.abort();
  log.stop.abort();
  log.key = "";
  page = { stop: new AbortController(), key };
  current = null;
  if (key === "link") return show(firstAdminView(null));
  if (key === "sign-in") return void askToSignIn(takeNotice());
  if (key === "welcome") return show(welcomeView(null, null));
  if (who() === null) void loadMe().then(badge);
  const { signal } = page.stop;
  (run === null ? watchOverview(signal) : watchRun(run, signal)).catch((err) => signal.aborted || fail(err));
}

async function watchOverview(signal) {
  for (;;) {
    await tryUntilReached(signal, async () => {
      const [environments, agents, datasets, runs] = await Promise.all(
        ["environments?limit=1000", "agents", "datasets?limit=1000", "runs?limit=50"].map((path) =>
          read(`/v1/${path}`, signal),
        ),
      );
      const data = {
        environments: environments.items,
        agents: agents.items,
        datasets: datasets.items,
        runs: runs.items,
      };
      current = { draw: () => show(overview(data, Date.now())) };
      current.draw();
    });
    await pause(POLL_MS, signal);
  }
}

/** Reads the run again after each event: one view, made by the server, instead of a second engine in the browser. */
async function watchRun(id, signal) {
  for (let ended = false; !ended; ) {
    await tryUntilReached(signal, async () => {
      let run = await readRun(id, signal);
      const events = follow(id, run.eventSeq, signal);
      let next = await events.next();
      while (!next.done) {
        if (next.value > run.eventSeq) run = await readRun(id, signal);
        next = await events.next();
      }
      ended = next.value;
      if (ended) await readRun(id, signal);
    });
    if (!ended) await pause(500, signal);
  }
}

async function readRun(id, signal) {
  const run = await read(`/v1/runs/${encodeURIComponent(id)}`, signal);
  current = { run, draw: () => drawRun(run) };
  current.draw();
  return run;
}

function drawRun(run) {
  const { step } = route();
  show(runView(run, step, Date.now()));
  document.title = `${run.pipeline} ${run.status} · Insitu`;
  watchLog(
    run,
    run.steps.find((one) => one.id === step),
  );
}

/** Follows the log of the step that is shown, from its first attempt on. */
function watchLog(run, step) {
  const key = step === undefined || step.attempts.length === 0 ? "" : `${run.id}/${step.id}`;
  if (log.key === key) return;
  log.stop.abort();
  log = { stop: new AbortController(), key };
  const { signal } = log.stop;
  const pane = document.getElementById("log");
  if (key !== "") keepLog(pane, run.id, step.id, signal).catch((err) => signal.aborted || fail(err));
}

/** A log that breaks off is read again from its start: what came twice would be worse than what comes late. */
async function keepLog(pane, runId, stepId, signal) {
  for (;;) {
    pane.replaceChildren();
    pane.chars = 0;
    try {
      return await fillLog(pane, runId, stepId, signal);
    } catch (err) {
      if (signal.aborted || !mayPass(err)) throw err;
      await pause(POLL_MS, signal);
    }
  }
}

async function fillLog(pane, runId, stepId, signal) {
  const decoders = {};
  let attempt = 1;
  let any = false;
  for await (const entry of followLogs(runId, stepId, signal)) {
    if (entry.attempt !== attempt) append(pane, `\n── attempt ${entry.attempt} ──\n`, "agent");
    attempt = entry.attempt;
    any = true;
    if (entry.droppedBytes > 0) {
      const lines = entry.droppedLines ? `${entry.droppedLines} lines, ` : "";
      append(pane, `\n── ${lines}${entry.droppedBytes} bytes dropped here ──\n`, "agent");
    }
    if (entry.refused) append(pane, `\n── not shown here: ${entry.refused} ──\n`, "agent");
    // A character may be split between two entries of one stream.
    decoders[entry.stream] ??= new TextDecoder();
    const data = Uint8Array.from(atob(entry.data), (char) => char.charCodeAt(0));
    append(pane, decoders[entry.stream].decode(data, { stream: true }).replace(ANSI, ""), entry.stream);
  }
  if (!any && !signal.aborted) append(pane, "There is nothing to show.", "agent");
}

function append(pane, text, stream) {
  const atEnd = pane.scrollTop + pane.clientHeight >= pane.scrollHeight - 8;
  pane.append(h(`span.${stream}`, null, text));
  pane.chars = (pane.chars ?? 0) + text.length;
  while (pane.chars > LOG_MAX_CHARS && pane.childNodes.length > 1) {
    pane.chars -= pane.firstChild.textContent.length;
    pane.firstChild.remove();
  }
  if (atEnd) pane.scrollTop = pane.scrollHeight;
}

/** One reading. A server that cannot be reached is waited for; everything else ends the page. */
async function tryUntilReached(signal, reading) {
  try {
    link("succeeded", "Connected");
    await reading();
  } catch (err) {
    if (signal.aborted || !mayPass(err)) throw err;
    link("failed", "Not connected, trying again");
    if (current === null) show(failedView("The server cannot be reached. This page goes on trying."));
    await pause(POLL_MS, signal);
  }
}

/** No answer, a server in trouble, or (a TypeError, in every browser) a connection that was cut. */
function mayPass(err) {
  return err instanceof ApiError ? err.status === 0 || err.status >= 500 : err instanceof TypeError;
}

function fail(err) {
  if (err.status !== 401) return show(failedView(err.message));
  const hadToken = tokenOfTab() !== null;
  forget();
  badge();
  page.stop.abort();
  page = { stop: new AbortController(), key: "sign-in" };
  current = null;
  void askToSignIn(
    hadToken
      ? "The server does not know this token. It may have been made anew."
      : "Your session has ended. Sign in again.",
  );
}

/** Shown once the server has said how one signs in here. */
async function askToSignIn(message) {
  const { signal } = page.stop;
  const provider = await identityProvider();
  if (!signal.aborted) show(signInView(message, provider));
}

const isWelcome = () => location.hash === "#/welcome";

function badge() {
  const me = who();
  const shown = isSignedIn() && [
    me && h("span", { title: me.name }, me.display ?? me.name),
    h("button.quiet", { type: "button", "data-action": "sign-out" }, "Sign out"),
  ];
  patch(document.getElementById("who"), h("p", { id: "who" }, shown || null));
}

function show(next) {
  patch(view, h("main", { id: "view", tabindex: "-1" }, next));
}

function link(shape, text) {
  patch(document.getElementById("link"), h(`p.${shape}`, { id: "link", role: "status" }, icon(shape), text));
}

function crumbs(run, step) {
  const path = [
    ["Overview", "#/"],
    run && [run, `#/runs/${run}`],
    step && [step, `#/runs/${run}/${step}`],
  ].filter(Boolean);
  document.title = "Insitu";
  patch(
    document.getElementById("crumbs"),
    h(
      "ol",
      { id: "crumbs" },
      path.map(([name, href], i) =>
        h("li", null, h("a", { href, "aria-current": i === path.length - 1 ? "page" : null }, name)),
      ),
    ),
  );
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    const onAbort = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    signal.addEventListener("abort", onAbort, { once: true });
  });
}

async function onSubmit(event) {
  const { action } = event.target.dataset;
  if (action === undefined) return;
  event.preventDefault();
  const given = new FormData(event.target);
  if (action === "first-token") return makeFirstToken(given.get("name"));
  signInWith(given.get("token"));
  page.key = "";
  await loadMe();
  open();
}

async function makeFirstToken(name) {
  const ttlMs = 90 * 24 * 3_600_000;
  try {
    const { token } = await post("/v1/tokens", { name, role: "admin", pipelines: null, ttlMs });
    show(welcomeView(null, token, location.origin));
  } catch (err) {
    show(welcomeView(err.message, null));
  }
}

async function becomeFirstAdmin() {
  const problem = await redeemLink();
  if (problem !== null) return show(firstAdminView(problem));
  location.hash = "#/welcome";
  page.key = "";
  open();
}

async function leave() {
  if (!(await signOut())) return alert("The server does not answer: you are still signed in.");
  page.key = "";
  open();
}

async function onClick(event) {
  const action = event.target.closest("[data-action]")?.dataset.action;
  if (action === "first-admin") return becomeFirstAdmin();
  if (action === "sign-out") return leave();
  if (action === "to-provider") return keepPlace();
  if (action === "drop-link") {
    event.preventDefault();
    dropLink();
    return open();
  }
  const button = event.target.closest('[data-action="cancel"]');
  if (event.target.closest('[data-action="skip"]')) {
    event.preventDefault();
    return view.focus();
  }
  const row = event.target.closest("tbody tr");
  if (row && !event.target.closest("a") && getSelection().isCollapsed) row.querySelector("a.main")?.click();
  if (!button || !confirm("Cancel this run? Its steps are stopped.")) return;
  button.disabled = true;
  await post(`/v1/runs/${encodeURIComponent(current.run.id)}/cancel`, {
    reason: "cancelled in the console",
  }).catch((err) => alert(err.message));
}

/** j and k walk the rows, Enter opens, Escape goes up. */
function onKey(event) {
  if (event.target.closest("input") || event.ctrlKey || event.metaKey || event.altKey) return;
  const rows = [...view.querySelectorAll("td a.main")];
  const at = rows.indexOf(document.activeElement);
  if (event.key === "j") rows[Math.min(at + 1, rows.length - 1)]?.focus();
  if (event.key === "k") rows[Math.max(at - 1, 0)]?.focus();
  if (event.key === "Escape")
    location.hash = route().step === null ? "#/" : `#/runs/${encodeURIComponent(route().run)}`;
}
