/** Container images in the programs as they ship: imported at the site, run by digest, told in outcome and plan. */
import { execFile } from "node:child_process";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import type { AgentView } from "../../control-plane/api/schemas.ts";
import { makeLayout, NO_IMAGES } from "../support/oci-layout.ts";
import { Plant } from "../support/plant.ts";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const run = promisify(execFile);

test.skipIf(NO_IMAGES !== undefined)(
  "a step runs an image by its digest once it has been imported at the site, and is refused with what to import before",
  { timeout: 60_000 },
  async () => {
    await using plant = new Plant({ dist: DIST, env: { INSITU_LOG_LEVEL: "error" } });
    await plant.startServer();
    const made = makeLayout(join(plant.directory, "layout"), {
      index: true,
      config: { Entrypoint: ["sh", "-c", 'echo "\\"$(cat /etc/issue)\\"" >"$INSITU_OUTPUT_DIR/issue"'] },
      files: { "etc/issue": "of the image" },
    });
    const image = `registry.example/test@${made.index}`;
    const step = { id: "fit", environment: "site", container: { image }, outputs: { issue: null } };
    await plant.apply(
      { kind: "environment", name: "site", jurisdiction: "DE" },
      { kind: "pipeline", name: "contained", steps: [step] },
    );
    await plant.startAgent("site", "a", ["--sandbox", "required"]);
    const agent = (await plant.call("GET", "/v1/agents/site/a")) as AgentView;
    expect(agent.sandbox).toMatchObject({ runsContainers: true });

    const { events: refused } = await plant.follow("contained");
    expect(refused.at(-1)).toMatchObject({ kind: "run.finished", status: "failed" });
    expect(JSON.stringify(refused)).toMatch(
      new RegExp(`image.missing.*${made.index}.*insitu-agent images import`),
    );

    const state = join(plant.directory, "sites", "site", "a");
    const imported = await run(process.execPath, [
      ...[join(DIST, "insitu-agent.js"), "images", "import", made.path],
      ...["--state-dir", state],
    ]);
    expect(imported.stdout).toContain(`${made.index} leads to it as well`);

    const { events } = await plant.follow("contained");
    expect(events.at(-1)).toMatchObject({ kind: "run.finished", status: "succeeded" });
    const text = JSON.stringify(events);
    expect(text).toContain("of the image");
    expect(text).toContain(`"image":"${made.index}"`);
  },
);
