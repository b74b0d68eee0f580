/** Tokens and what they may do, at the server as it is shipped. */
import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { Plant } from "../support/plant.ts";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const SITE = { kind: "environment", name: "site", jurisdiction: "DE" };
const LIMIT_MS = 60_000;

const pipeline = (name: string) => ({
  kind: "pipeline",
  name,
  steps: [{ id: "s", environment: "site", uses: "noop" }],
});

test("a program's token starts its pipeline over a killed server, does nothing else, and lies nowhere on disk", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = new Plant({ dist: DIST });
  await plant.startServer();
  await plant.apply(SITE, pipeline("nightly"), pipeline("payroll"));
  const payroll = await plant.start("payroll");
  const made = await plant.call("POST", "/v1/tokens", {
    name: "ci",
    role: "runner",
    pipelines: ["nightly"],
  });
  const ci = (made as { token: string }).token;
  const operator = plant.token;

  const gone = once(plant.server!, "exit");
  plant.server!.kill("SIGKILL");
  await gone;
  await plant.startServer();

  plant.token = ci;
  const run = await plant.start("nightly");
  expect(run.createdBy).toBe("ci");
  const { items } = (await plant.call("GET", "/v1/runs")) as { items: { id: string }[] };
  expect(items.map(({ id }) => id)).toEqual([run.id]);
  await expect(plant.run(payroll.id)).rejects.toThrow(/: 404 /);
  await expect(plant.start("payroll")).rejects.toThrow(/: 404 /);
  await expect(plant.call("DELETE", "/v1/pipelines/nightly")).rejects.toThrow(/: 403 .*resources:delete/);
  await expect(plant.call("GET", "/v1/tokens")).rejects.toThrow(/: 403 .*tokens:manage/);

  plant.token = operator;
  await plant.call("DELETE", "/v1/tokens/ci");
  plant.token = ci;
  await expect(plant.call("GET", "/v1/runs")).rejects.toThrow(/: 401 /);

  const secret = ci.slice("ins_ci_".length);
  const files = readdirSync(plant.directory, { recursive: true, withFileTypes: true }).filter((entry) =>
    entry.isFile(),
  );
  expect(files.length).toBeGreaterThan(5);
  const holding = files
    .map((entry) => join(entry.parentPath, entry.name))
    .filter((path) => readFileSync(path).includes(secret));
  expect(holding).toEqual([]);
});
