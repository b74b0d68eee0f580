/**
 * A canary: steps do what they can to have their secrets written down, with the programs as they ship, and afterwards
 * it is looked for in every file that they left and in every answer of the API. A marker that is no secret shows that
 * the search would find it.
 */
import { once } from "node:events";
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, expect, test } from "vitest";
import { encodingsOf } from "../../agent/secrets/encodings.ts";
import { answer, TestVault } from "../../agent/secrets/vault.fixture.ts";
import { Plant } from "../support/plant.ts";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const MARKER = "marker-that-is-no-secret";
const CANARIES = {
  password: "cAn\"4ry's /pass+wörd\\%7",
  token: "ins_t0ken-canary.AbCdEf0123456789",
  key: `-----BEGIN KEY-----\n${"Q2FuYXJ5".repeat(8)}\n${"a2V5Y2Fu".repeat(8)}\n-----END KEY-----\n`,
};

/** Independent of what the product looks for, as far as it goes. */
function formsOf(value: string): Buffer[] {
  const bytes = Buffer.from(value);
  const core = value.trimEnd();
  const plain = [
    value,
    core,
    JSON.stringify(core).slice(1, -1),
    encodeURIComponent(core),
    ...core.split("\n"),
  ];
  const coded = (["hex", "base64", "base64url"] as const).map((encoding) =>
    bytes.toString(encoding).replace(/=+$/, ""),
  );
  const all = [...plain, ...coded].filter(({ length }) => length > 8).map((form) => Buffer.from(form));
  return [...all, ...encodingsOf(bytes)];
}
const FORMS = Object.values(CANARIES).flatMap(formsOf);

/** What a step does that wants its secrets in the log, in its outputs and in its error. */
const LOUD = `
const { readFileSync, writeFileSync, existsSync } = require("node:fs");
const values = [process.env.PASSWORD, process.env.TOKEN, readFileSync(process.env.KEY_FILE, "utf8")];
const marker = ${JSON.stringify(MARKER.split("-"))}.join("-"); // not in the document
console.log(marker);
for (const value of values) {
  const forms = [value, JSON.stringify({ value }), encodeURIComponent(value), new URLSearchParams({ value }).toString()];
  for (const encoding of ["hex", "base64", "base64url"])
    for (const before of ["", "u", "u:"]) forms.push(Buffer.from(before + value).toString(encoding));
  for (const form of forms) {
    console.log(form);
    console.error("> " + form.split("\\n").join("\\n> "));
    for (const char of form) process.stdout.write(char);
  }
  process.stdout.write(value.slice(0, 9));
}
writeFileSync(process.env.INSITU_OUTPUT_DIR + "/said", JSON.stringify({ values, marker }));
const wait = () => existsSync(process.env.INSITU_DATASET_GATE + "/open") ? end() : setTimeout(wait, 20);
const end = () => {
  console.log(values[1]);
  process.exitCode = Number(process.argv[1]);
};
console.log("ready");
wait();
`;

let own: string;
let vault: TestVault;
beforeEach(async () => {
  own = mkdtempSync(join(tmpdir(), "insitu-canary-"));
  vault = new TestVault();
  vault.secrets.set("secret/app", { token: CANARIES.token });
});
afterEach(async () => {
  await vault[Symbol.asyncDispose]();
  rmSync(own, { recursive: true, force: true });
});

async function configure(): Promise<string> {
  const keep = (name: string, text: string): string => {
    writeFileSync(join(own, name), text, { mode: 0o600 });
    return join(own, name);
  };
  const config = {
    stateDir: "given-by-flag",
    vault: {
      address: `http://127.0.0.1:${await vault.listen()}`,
      tokenFile: keep("vault-token", vault.token),
    },
    secrets: {
      password: { from: "exec", argv: ["cat", keep("password", CANARIES.password)] },
      token: { from: "vault", path: "app", field: "token" },
      key: { from: "file", path: keep("key", CANARIES.key) },
    },
  };
  return keep("agent.json", JSON.stringify(config));
}

interface Hit {
  file: string;
  form: string;
}

/** Files below a directory that hold one of the forms. */
function search(directory: string, forms: readonly Buffer[]): Hit[] {
  return readdirSync(directory, { recursive: true, encoding: "utf8" }).flatMap((name) => {
    const file = join(directory, name);
    if (!statSync(file).isFile()) return [];
    const bytes = readFileSync(file);
    return forms
      .filter((form) => bytes.includes(form))
      .map((form) => ({ file, form: form.toString("latin1") }));
  });
}

function commandLines(): Buffer[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .flatMap((pid) => {
      try {
        return [readFileSync(`/proc/${pid}/cmdline`)];
      } catch {
        return []; // gone meanwhile
      }
    });
}

const inMemory = (): string[] => readdirSync("/dev/shm").filter((name) => name.startsWith("insitu-"));

test.each([
  ["in a box", "required"],
  ["without a box", "off"],
])(
  "%s, no secret of a step is anywhere afterwards, also when its agent was killed meanwhile",
  {
    timeout: 60_000,
  },
  async (_, sandbox) => {
    await using plant = new Plant({ dist: DIST, env: { INSITU_LOG_LEVEL: "debug" } });
    await plant.startServer();
    const gate = join(own, "gate");
    mkdirSync(gate);
    chmodSync(gate, 0o777);
    chmodSync(own, 0o755);
    const secrets = {
      PASSWORD: { name: "password", as: "env" },
      TOKEN: { name: "token", as: "env" },
      KEY: { name: "key" },
    };
    const step = (id: string, code: number) => ({
      ...{ id, environment: "site", writes: ["gate"], secrets },
      run: [process.execPath, "-e", LOUD, String(code)],
      outputs: { said: { type: "json" } },
    });
    await plant.apply(
      { kind: "environment", name: "site", jurisdiction: "DE" },
      ...[
        {
          kind: "dataset",
          name: "gate",
          owner: "t",
          classification: "public",
          residency: "DE",
          environments: "site",
        },
      ],
      { kind: "pipeline", name: "loud", steps: [step("ends-well", 0), step("fails", 3)] },
    );
    const before = inMemory();
    const flags = [
      "--config",
      await configure(),
      "--sandbox",
      sandbox,
      "--dataset",
      `gate=${gate}`,
      "--slots",
      "2",
    ];
    const agent = await plant.startAgent("site", "only", [...flags, "--on-stop", "leave"]);
    const { id } = await plant.start("loud");
    const logs = async (): Promise<string> => linesOf(await text(plant, `/v1/runs/${id}/logs`));
    await plant.until(async () => (await logs()).split("ready").length === 3);
    expect(inMemory().length - before.length).toBe(sandbox === "off" ? 2 : 0);
    const lines = commandLines();
    expect(lines.some((line) => line.includes("INSITU_OUTPUT_DIR"))).toBe(true);
    expect(lines.filter((line) => FORMS.some((form) => line.includes(form)))).toEqual([]);

    // Whoever takes the steps up again knows no secret any more.
    agent.kill("SIGKILL");
    await once(agent, "exit");
    vault.instead.push(...Array.from({ length: 9 }, () => answer(503, {})));
    plant.spawnAgent("site", "only", [...flags, "--on-stop", "interrupt"]);
    writeFileSync(join(gate, "open"), "");
    const events = await plant.events(id, () => false);
    expect(events.at(-1)).toMatchObject({ kind: "run.finished", status: "failed" });
    const outcomes = events.flatMap((event) => (event.kind === "attempt.finished" ? [event] : []));
    const ended = new Map(outcomes.map(({ step: name, outcome }) => [name, outcome]));
    expect(ended.get("fails")).toMatchObject({ status: "failed", exitCode: 3 });
    expect(ended.get("ends-well")).toMatchObject({ status: "succeeded" });
    expect(ended.get("ends-well")?.egress.map(({ verdict }) => verdict)).toEqual(["redact", "redact"]);
    const said = JSON.parse(ended.get("ends-well")?.outputs.said?.text ?? "null");
    expect(said).toMatchObject({ values: expect.arrayContaining(["***"]), marker: MARKER });

    await plant.until(
      async () => (await logs()).split("ready").length === 3 && inMemory().length === before.length,
    );
    const answers = [Buffer.from(JSON.stringify(events)), Buffer.from(await logs(), "latin1")];
    for (const path of [`/v1/runs/${id}`, "/v1/runs", "/v1/agents", "/v1/pipelines/loud"])
      answers.push(Buffer.from(await text(plant, path)));
    const told = Buffer.concat(answers);
    expect(told.includes(MARKER)).toBe(true);
    expect(FORMS.filter((form) => told.includes(form))).toEqual([]);
    const control = search(plant.directory, [Buffer.from(MARKER)]).map(({ file }) => file);
    expect(control.some((file) => file.includes("server"))).toBe(true);
    expect(control.some((file) => file.includes(join("only", "journal")))).toBe(true);
    expect(search(plant.directory, FORMS)).toEqual([]);
  },
);

/** What was written, of an answer that holds it in base64. */
function linesOf(answered: string): string {
  const entries = answered.split("\n").filter((line) => line !== "");
  const data = entries.map((line) => (JSON.parse(line) as { data: string }).data);
  return data.map((base64) => Buffer.from(base64, "base64").toString("latin1")).join("");
}

async function text(plant: Plant, path: string): Promise<string> {
  const headers = { authorization: `Bearer ${plant.token}`, "accept-encoding": "gzip" };
  const response = await fetch(plant.url + path, { headers });
  expect([path, response.status]).toEqual([path, 200]);
  return await response.text();
}
