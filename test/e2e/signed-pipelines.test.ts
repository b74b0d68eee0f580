/** A site that runs signed pipelines alone, against a control plane whose keys somebody has: the programs as they are shipped. */
import { execFile } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import { loadOrCreateOfferSigner } from "../../control-plane/access/offer-signer.ts";
import type { ServerConfig } from "../../control-plane/config.ts";
import { connectNats } from "../../control-plane/store/jetstream.ts";
import { JetStreamOfferQueue } from "../../control-plane/store/jetstream-offer-queue.ts";
import { runningTarget } from "../../control-plane/store/nats-target.ts";
import type { RunEvent } from "../../shared/engine/events.ts";
import { digestOf } from "../../shared/model/canonical.ts";
import { loadDocuments } from "../../shared/model/load-documents.ts";
import type { PipelineSpec } from "../../shared/model/spec.ts";
import { PipelineEnvelopes, pipelineTree } from "../../shared/provenance/signed-pipeline.ts";
import { systemClock } from "../../shared/system.ts";
import type { Offer } from "../../shared/wire/attempt.ts";
import { Plant } from "../support/plant.ts";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const LIMIT_MS = 90_000;

/** The command line, as an author uses it. */
async function insitu(
  plant: Plant,
  ...args: string[]
): Promise<{ code: number; stdout: string; stderr: string }> {
  const env = { ...process.env, INSITU_SERVER: plant.url, INSITU_TOKEN: plant.token, NO_COLOR: "1" };
  try {
    const options = { env, cwd: plant.directory };
    return {
      code: 0,
      ...(await promisify(execFile)(process.execPath, [join(DIST, "insitu.js"), ...args], options)),
    };
  } catch (thrown) {
    return thrown as { code: number; stdout: string; stderr: string };
  }
}

const ended = (events: readonly RunEvent[]) => events.at(-1);

test("a site runs what an author has signed, refuses what nobody has, and a control plane that was taken over runs nothing else there", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = new Plant({ dist: DIST });
  await plant.startServer();
  const file = (name: string): string => join(plant.directory, name);
  const write = (name: string, text: string): void => writeFileSync(file(name), text, { mode: 0o644 });
  write("site.yaml", "kind: environment\nname: site\njurisdiction: CH\n");
  const source = (argument: string) =>
    `# Kept as somebody wrote it.\nkind: pipeline\nname: nightly\nparams:\n  year: { type: number, default: 2025 }\nsteps:\n  - id: fit\n    environment: site\n    run: [sh, write.sh, ${argument}] # and this\n    files: [write.sh]\n    env: { MODE: strict }\n`;
  write("write.sh", `echo "$MODE $INSITU_PARAM_YEAR" > "${plant.directory}/$1"\n`);
  write("nightly.yaml", source("first"));
  expect(await insitu(plant, "apply", "-f", "site.yaml")).toMatchObject({ code: 0 });

  expect(await insitu(plant, "sign", "keygen", "ada.pem")).toMatchObject({ code: 0 });
  const publicPem = readFileSync(file("ada.pub.pem"), "utf8");
  const lists = `version: 1\npipelines: ["*"]\nexecutors: [process]\ncommands: [["*", "**"]]\nfiles: ["*"]\nenv: ["*"]\n`;
  const key = `    - name: ada\n      pipelines: [nightly]\n      publicKey: |\n${publicPem.replaceAll(/^/gm, "        ").trimEnd()}\n`;
  write("policy.yaml", `${lists}signedPipelines:\n  keys:\n${key}`);
  await plant.startAgent("site", "a1", ["--site-policy", file("policy.yaml")]);

  // Nobody has signed it.
  expect(await insitu(plant, "apply", "-f", "nightly.yaml")).toMatchObject({ code: 0 });
  expect(ended((await plant.follow("nightly")).events)).toMatchObject({
    status: "failed",
    reason: expect.stringMatching(
      /rule signedPipelines: pipeline nightly is not signed, and only signed ones run here/,
    ),
  });

  // Signed, it runs: the same version, and runs of it from now on.
  const signed = await insitu(
    plant,
    "sign",
    "-f",
    "nightly.yaml",
    "--key",
    "ada.pem",
    "--expires",
    "30d",
    "--out",
    "signed.yaml",
  );
  expect(signed).toMatchObject({ code: 0 });
  const text = readFileSync(file("signed.yaml"), "utf8");
  expect(text).toContain("# Kept as somebody wrote it.");
  expect(text).toContain("# and this");
  expect(await insitu(plant, "verify", "-f", "signed.yaml", "--key", "ada.pub.pem")).toMatchObject({
    code: 0,
    stdout: expect.stringMatching(/^pipeline\/nightly \(sha256:\w+…\) valid: signed .* by sha256:/),
  });
  expect((await insitu(plant, "verify", "-f", "nightly.yaml", "--key", "ada.pub.pem")).code).toBe(1);
  expect((await insitu(plant, "apply", "-f", "signed.yaml")).stdout).toMatch(/^pipeline\/nightly updated/);
  expect((await insitu(plant, "apply", "-f", "signed.yaml")).stdout).toMatch(/^pipeline\/nightly unchanged/);
  expect((await insitu(plant, "describe", "pipeline", "nightly")).stdout).toMatch(
    /signed +by sha256:.*sites check it/,
  );
  const args = ["policy", "check", "--site-policy", file("policy.yaml"), "--step", "fit", "--pipeline"];
  const agent = join(DIST, "insitu-agent.js");
  const { stdout } = await promisify(execFile)(process.execPath, [agent, ...args, file("signed.yaml")]);
  expect(stdout).toMatch(/signedPipelines +allowed/);
  expect(ended((await plant.follow("nightly")).events)).toMatchObject({ status: "succeeded" });
  expect(readFileSync(file("first"), "utf8")).toBe("strict 2025\n");

  // A signature is of what was signed, and an apply says so with its place.
  write("edited.yaml", text.replace("write.sh, first", "write.sh, second"));
  const stale = await insitu(plant, "apply", "-f", "edited.yaml");
  expect(stale.code).toBe(2);
  expect(stale.stderr).toMatch(
    /edited\.yaml:\d+:\d+.*\n?.*signature 1 is of pipeline nightly in version sha256:/,
  );

  // Who has the keys of the control plane offers what he likes; the agent takes offers from nobody else.
  const data = join(plant.directory, "server");
  const signer = await loadOrCreateOfferSigner(join(data, "secrets"));
  const target = await runningTarget({ data } as ServerConfig);
  const nats = await connectNats({ ...target, name: "attacker" });
  const queue = new JetStreamOfferQueue(nats, (payload) => signer.sign(payload));
  const honest = offerOf("signed.yaml");
  const { step, signed: proof } = honest;
  const evil = (change: Partial<Offer["step"]>): Offer["step"] => ({ ...step, ...change });
  const command = (name: string): Offer["step"] =>
    evil({ executor: { kind: "process", argv: ["touch", file(name)] } });
  const second = offerOf("edited.yaml");
  const attacks: Record<string, Partial<Offer>> = {
    command: { step: command("command") },
    stripped: { step: command("stripped"), signed: undefined },
    variable: { step: evil({ env: { MODE: "lax" } }) },
    script: { files: { "write.sh": `touch ${file("script")}\n` } },
    parameter: { params: { year: `$(touch ${file("parameter")})` } },
    "other-version": { ...second, signed: proof! },
    "other-tree": { ...second, signed: { ...second.signed!, envelopes: proof!.envelopes } },
  };
  for (const [name, change] of Object.entries(attacks)) {
    const offer = { ...honest, ...change, lease: { ...honest.lease, runId: `attack-${name}` } };
    await queue.publish(offer);
  }
  const log = (): string => readFileSync(join(plant.directory, "site-a1.log"), "utf8");
  await plant.until(async () =>
    Object.keys(attacks).every((name) => vetoOf(log(), `attack-${name}`) !== undefined),
  );
  for (const name of Object.keys(attacks)) {
    expect(vetoOf(log(), `attack-${name}`)).toMatch(/rule signedPipelines: /);
    expect(existsSync(file(name))).toBe(false);
  }
  expect(existsSync(file("second"))).toBe(false);
  // The way in was a real one: what the author has signed comes through it.
  writeFileSync(file("first"), "");
  await queue.publish({
    ...honest,
    params: { year: 1999 },
    lease: { ...honest.lease, runId: "attack-none" },
  });
  await plant.until(async () => readFileSync(file("first"), "utf8") === "strict 1999\n");
  await nats.close();

  function offerOf(name: string): Offer {
    const { resources } = loadDocuments({
      files: [{ file: name, text: readFileSync(file(name), "utf8") }],
      readAttachment: (path) => readFileSync(file(path), "utf8"),
      staleSignatures: "allowed",
    });
    const [resource] = resources;
    const spec = resource!.spec as PipelineSpec;
    const envelopes = PipelineEnvelopes.parse((resource!.document as { signatures?: unknown }).signatures);
    const nowMs = systemClock.wallMs();
    return {
      v: 1,
      lease: { runId: "r", stepId: "fit", attempt: 1, epoch: 1 },
      environment: "site",
      pipeline: "nightly",
      version: digestOf(spec),
      step: spec.steps[0]!,
      params: { year: 2025 },
      inputs: {},
      files: spec.files,
      datasets: [],
      policyVersion: "p",
      issuedAtMs: nowMs,
      expiresAtMs: nowMs + LIMIT_MS,
      traceparent: `00-${"a".repeat(32)}-${"b".repeat(16)}-01`,
      signed: { envelopes, ...pipelineTree(spec).provenStep("fit")! },
    };
  }
});

/** Why the agent refused an offer, as its log says. */
function vetoOf(log: string, runId: string): string | undefined {
  return log
    .split("\n")
    .filter((line) => line.includes(`"${runId}"`) && line.includes("offer vetoed"))
    .map((line) => (JSON.parse(line) as { reason: string }).reason)[0];
}
