/** What the pages show, from what the API said. Text only ever enters as text. */
import { h, icon } from "./dom.js";

const ICONS = {
  succeeded: "succeeded",
  failed: "failed",
  "timed-out": "failed",
  refused: "failed",
  running: "running",
  offered: "running",
  cancelling: "stopped",
  cancelled: "stopped",
  backoff: "waiting",
  ready: "waiting",
  lost: "waiting",
  disconnected: "waiting",
  resolved: "idle",
  interrupted: "waiting",
  pending: "idle",
  skipped: "idle",
  fenced: "idle",
};

export function state(status) {
  const shape = ICONS[status] ?? "idle";
  return h(`span.state.${shape}`, null, icon(shape), status);
}

export function bytes(count) {
  if (count < 1000) return `${count} B`;
  const power = Math.min(4, Math.floor(Math.log10(count) / 3));
  return `${(count / 1000 ** power).toPrecision(3)} ${["", "kB", "MB", "GB", "TB"][power]}`;
}

export function duration(ms) {
  if (ms < 1000) return `${Math.max(0, Math.round(ms))} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  if (ms < 3_600_000) return `${Math.floor(ms / 60_000)} min ${Math.round((ms % 60_000) / 1000)} s`;
  return `${Math.floor(ms / 3_600_000)} h ${Math.round((ms % 3_600_000) / 60_000)} min`;
}

const time = (atMs) =>
  h(
    "time",
    { datetime: new Date(atMs).toISOString(), title: new Date(atMs).toISOString() },
    new Date(atMs).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" }),
  );
const took = (startMs, endMs, nowMs) => (startMs === null ? "–" : duration((endMs ?? nowMs) - startMs));
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
const short = (digest) => h("code", { title: digest }, digest.replace(/^sha256:/, "").slice(0, 12));
const runPath = (run) => `#/runs/${encodeURIComponent(run.id)}`;

/** Bytes of content that left the sites, and that policy kept there. */
function egressOf(steps) {
  const records = steps.flatMap((step) => step.attempts).flatMap((attempt) => attempt.egress);
  const sum = (key) => records.reduce((total, record) => total + record[key], 0);
  return { sent: sum("sentBytes"), kept: sum("keptBytes") };
}

export function failedView(message) {
  return h(
    "section",
    null,
    h("h1", null, "This cannot be shown"),
    h("p.note.bad", { role: "alert" }, message),
    h("p", null, h("a", { href: "#/" }, "All runs and sites")),
  );
}

export function overview({ environments, agents, datasets, runs }, nowMs) {
  return h(
    "div",
    null,
    h(
      "section",
      { "aria-labelledby": "sites" },
      h("h1", { id: "sites" }, "Sites"),
      environments.length === 0
        ? empty("No site yet.", "insitu apply -f environments.yaml")
        : h(
            "ul.cards",
            null,
            environments.map(({ spec }) => site(spec, agents, datasets)),
          ),
    ),
    h(
      "section",
      { "aria-labelledby": "runs" },
      h("h1", { id: "runs" }, "Runs"),
      runs.length === 0 ? empty("No run yet.", "insitu run penguins --watch") : runTable(runs, nowMs),
    ),
  );
}

const empty = (text, command) => h("p.empty", null, text, " Try ", h("code", null, command));

function site(environment, agents, datasets) {
  const here = agents.filter((agent) => agent.environment === environment.name);
  const connected = here.filter((agent) => agent.connected);
  const slots = connected.reduce((sum, agent) => sum + agent.slots, 0);
  const busy = connected.reduce((sum, agent) => sum + agent.leases.length, 0);
  const held = datasets.filter(({ spec }) => spec.environments.includes(environment.name));
  return h(
    "li.card",
    { "data-key": environment.name },
    h("h2", null, environment.name, h("span.tag", { title: "Jurisdiction" }, environment.jurisdiction)),
    h(
      "p.quiet",
      null,
      here.length === 0
        ? "No agent has joined"
        : `${connected.length} of ${plural(here.length, "agent")} connected`,
      slots > 0 && ` · ${busy} of ${plural(slots, "slot")} busy`,
    ),
    here.length > 0 &&
      h(
        "ul.agents",
        null,
        here.map((agent) =>
          h(
            "li",
            { title: agent.software },
            icon(agent.connected ? "succeeded" : "failed"),
            agent.name,
            h("span.quiet", null, agentNote(agent)),
          ),
        ),
      ),
    h(
      "p.data",
      null,
      held.length === 0
        ? h("span.quiet", null, "Holds no dataset")
        : held.map(({ spec }) =>
            h(
              "span.tag.data",
              { title: `${spec.classification}; stays in ${spec.residency.join(", ")}` },
              spec.name,
            ),
          ),
    ),
  );
}

/** What keeps the agent from work. */
function agentNote({ connected, notTakingWork, cordon }) {
  const away = connected ? "" : "disconnected";
  if (!cordon) return away || notTakingWork;
  const { state, by, reason, left, drain } = cordon;
  const words = {
    "not-heard": drain ? "to be drained" : "to be cordoned",
    cordoned: "cordoned",
    draining: `draining, ${left} left,`,
    drained: "drained",
  };
  const why = `${words[state]} by ${by}${reason && `: ${reason}`}`;
  return away ? `${away}, ${why}` : why;
}

function runTable(runs, nowMs) {
  return h(
    "div.scroll",
    null,
    h(
      "table",
      null,
      h(
        "thead",
        null,
        h(
          "tr",
          null,
          ["Run", "State", "Steps", "Started", "Took"].map((name) => h("th", { scope: "col" }, name)),
        ),
      ),
      h(
        "tbody",
        null,
        runs.map((run) => {
          const total = Object.values(run.counts).reduce((sum, count) => sum + count, 0);
          return h(
            "tr",
            { "data-key": run.id },
            h("td", null, h("a.main", { href: runPath(run) }, run.pipeline), h("div.quiet.id", null, run.id)),
            h("td", null, state(run.status)),
            h(
              "td",
              null,
              h("meter", {
                min: 0,
                max: total || 1,
                value: run.counts.succeeded ?? 0,
                "aria-label": "Steps that succeeded",
              }),
              ` ${run.counts.succeeded ?? 0}/${total}`,
            ),
            h("td", null, time(run.createdAtMs)),
            h("td.number", null, took(run.createdAtMs, run.finishedAtMs, nowMs)),
          );
        }),
      ),
    ),
  );
}

export function runView(run, selected, nowMs) {
  const { sent, kept } = egressOf(run.steps);
  const going = run.finishedAtMs === null;
  const step = run.steps.find((one) => one.id === selected);
  return h(
    "div",
    null,
    h(
      "section.run",
      null,
      h(
        "div.title",
        null,
        h("h1", null, run.pipeline),
        state(run.status),
        going &&
          h(
            "button",
            { type: "button", "data-action": "cancel", disabled: run.status === "cancelling" },
            "Cancel run",
          ),
      ),
      run.reason && h("p.note", { class: run.status === "failed" ? "note bad" : "note" }, run.reason),
      h(
        "dl.facts",
        null,
        fact("Took", took(run.createdAtMs, run.finishedAtMs, nowMs)),
        fact("Started", time(run.createdAtMs)),
        fact("By", run.createdBy),
        fact("Version", short(run.version)),
        fact("Left the sites", bytes(sent)),
        fact("Kept by policy", bytes(kept)),
        Object.entries(run.params).map(([name, value]) => fact(name, String(value))),
      ),
    ),
    h(
      "div.columns",
      { class: step ? "columns open" : "columns" },
      h("section", { "aria-label": "Steps" }, stepTable(run, selected, nowMs)),
      step && stepDetail(run, step, nowMs),
    ),
  );
}

const fact = (name, value) => h("div", null, h("dt", null, name), h("dd", null, value));

function stepTable(run, selected, nowMs) {
  return h(
    "div.scroll",
    null,
    h(
      "table.steps",
      null,
      h(
        "thead",
        null,
        h(
          "tr",
          null,
          ["Step", "State", "Site", "Took", "Left"].map((name) => h("th", { scope: "col" }, name)),
        ),
      ),
      h(
        "tbody",
        null,
        run.steps.map((step) =>
          h(
            "tr",
            { "data-key": step.id, "aria-current": step.id === selected ? "true" : null },
            h(
              "td",
              null,
              h("a.main", { href: `${runPath(run)}/${step.id}` }, step.id),
              step.needs.length > 0 && h("div.quiet", null, `after ${step.needs.join(", ")}`),
            ),
            h("td", null, state(step.status), step.waiting && h("div.quiet", null, step.waiting.message)),
            h(
              "td",
              null,
              step.environment ?? "–",
              step.agent && h("div.quiet.agent-name", null, step.agent.split("/").at(-1)),
            ),
            h("td.number", null, took(step.startedAtMs, step.finishedAtMs, nowMs)),
            h("td.number", null, step.attempts.length === 0 ? "–" : bytes(egressOf([step]).sent)),
          ),
        ),
      ),
    ),
  );
}

function stepDetail(run, step, nowMs) {
  const egress = step.attempts.flatMap((attempt) => attempt.egress);
  const withheld = egress.filter((record) => record.kind === "log" && record.verdict !== "allow");
  const outputs = Object.entries(step.outputs);
  return h(
    "section.detail",
    { "data-key": step.id, "aria-labelledby": "step" },
    h(
      "div.title",
      null,
      h("h2", { id: "step" }, step.id),
      state(step.status),
      h("a.close", { href: runPath(run), "aria-label": "Close the step" }, "Close"),
    ),
    step.error && h("p.note.bad", null, h("b", null, step.error.code), ` ${step.error.message}`),
    step.waiting && h("p.note", null, step.waiting.message),
    (step.reads.length > 0 || step.writes.length > 0) &&
      h(
        "p.data",
        null,
        step.reads.map((name) => h("span.tag.data", null, `reads ${name}`)),
        step.writes.map((name) => h("span.tag.data", null, `writes ${name}`)),
      ),
    part(
      "Outputs",
      outputs.length > 0 &&
        h(
          "dl.outputs",
          null,
          outputs.map(([name, value]) => [
            h("dt", null, name, h("span.quiet", null, ` ${bytes(value.bytes)}`)),
            h(
              "dd",
              null,
              value.text === undefined
                ? ["only its digest left the site: ", short(value.digest)]
                : h("pre", null, pretty(value)),
            ),
          ]),
        ),
    ),
    part(
      "Artifacts",
      step.artifacts.length > 0 &&
        h(
          "ul.plain",
          null,
          step.artifacts.map((artifact) =>
            h(
              "li",
              null,
              h("b", null, artifact.name),
              ` ${bytes(artifact.bytes)}, stays at ${artifact.environment}, `,
              short(artifact.digest),
            ),
          ),
        ),
    ),
    part(
      "What left the site",
      egress.length > 0 &&
        h(
          "div.scroll",
          null,
          h(
            "table",
            null,
            h(
              "thead",
              null,
              h(
                "tr",
                null,
                ["What", "Verdict", "Left", "Kept"].map((name) => h("th", { scope: "col" }, name)),
              ),
            ),
            h(
              "tbody",
              null,
              egress.map((record) =>
                h(
                  "tr",
                  null,
                  h(
                    "td",
                    null,
                    record.kind,
                    record.name && record.name !== record.kind && h("span.quiet", null, ` ${record.name}`),
                  ),
                  h("td", null, record.verdict),
                  h("td.number", null, bytes(record.sentBytes)),
                  h("td.number", null, bytes(record.keptBytes)),
                ),
              ),
            ),
          ),
        ),
    ),
    part(
      "Attempts",
      step.attempts.length > 0 &&
        h(
          "ol.plain",
          null,
          step.attempts.map((attempt) =>
            h(
              "li",
              null,
              state(attempt.status),
              ` ${attempt.agent ?? attempt.environment} · ${took(attempt.startedAtMs, attempt.finishedAtMs, nowMs)}`,
              attempt.exitCode !== null && attempt.exitCode !== 0 && ` · exit ${attempt.exitCode}`,
              attempt.status === "fenced" &&
                h("div.quiet", null, "Its grant was superseded: kept as evidence, counts for nothing."),
              attempt.error && h("div.quiet", null, attempt.error.message),
            ),
          ),
        ),
    ),
    h("h3", null, "Log"),
    withheld.length > 0 &&
      h(
        "p.note",
        null,
        `Policy kept ${bytes(withheld.reduce((sum, record) => sum + record.keptBytes, 0))} of log at ${step.environment}; it can be read there.`,
      ),
    h("pre.log", {
      id: "log",
      "data-keep": "",
      "data-key": `${run.id}/${step.id}`,
      tabindex: "0",
      role: "log",
      "aria-live": "off",
      "aria-label": `Log of ${step.id}`,
    }),
  );
}

const part = (title, content) => content && [h("h3", null, title), content];

function pretty({ type, text }) {
  if (type !== "json") return text;
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // Shown as it came: the site said JSON, and that is the site's mistake to see.
  }
}
