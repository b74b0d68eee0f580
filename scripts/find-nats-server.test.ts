import { chmod, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { compareVersions, findNatsServer } from "./find-nats-server.mjs";

let root = "";

beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), "insitu-find-"));
});
afterAll(() => rm(root, { recursive: true, force: true }));

/** A directory for the PATH, with scripts in it by name. */
async function directory(name: string, scripts: Record<string, string>): Promise<string> {
  const path = join(root, name);
  await mkdir(path, { recursive: true });
  for (const [file, body] of Object.entries(scripts)) {
    await writeFile(join(path, file), `#!/bin/sh\n${body}\n`);
    await chmod(join(path, file), 0o755);
  }
  return path;
}

const saysVersion = (version: string) => `echo "nats-server: v${version}"`;

describe("finding a nats-server", () => {
  test("takes the newest of all on the PATH, not the first", async () => {
    const old = await directory("old", { "nats-server": saysVersion("2.9.10") });
    const recent = await directory("recent", { "nats-server": saysVersion("2.12.1") });
    const broken = await directory("broken", { "nats-server": "exit 1" });
    expect(await findNatsServer({ env: { PATH: `${broken}:${old}:${recent}` }, alsoIn: [] })).toEqual({
      path: join(recent, "nats-server"),
      version: "2.12.1",
    });
  });

  test("takes the one that INSITU_NATS_SERVER names, whatever else there is", async () => {
    const chosen = join(await directory("chosen", { "nats-server": saysVersion("2.9.0") }), "nats-server");
    const newer = await directory("newer", { "nats-server": saysVersion("2.99.0") });
    const found = await findNatsServer({ env: { INSITU_NATS_SERVER: chosen, PATH: newer }, alsoIn: [] });
    expect(found).toEqual({ path: chosen, version: "2.9.0" });
  });

  test("refuses one that is too old, naming its version and the commands that help", async () => {
    const path = await directory("ancient", { "nats-server": saysVersion("2.8.4") });
    const refusal = /2\.8\.4; 2\.9\.0 is the oldest[\s\S]*apt-get install[\s\S]*brew install[\s\S]*docker/;
    await expect(findNatsServer({ env: { PATH: path }, alsoIn: [] })).rejects.toThrow(refusal);
    const env = { INSITU_NATS_SERVER: join(path, "nats-server") };
    await expect(findNatsServer({ env, alsoIn: [] })).rejects.toThrow(refusal);
  });

  test("says what to type when there is none", async () => {
    const path = await directory("empty", {});
    await expect(findNatsServer({ env: { PATH: path }, alsoIn: [] })).rejects.toThrow(
      /No nats-server was found[\s\S]*apt-get install -y nats-server/,
    );
  });

  test.runIf(process.getuid?.() === 0)(
    "installs Debian's package as root, after refreshing lists that are missing",
    async () => {
      const path = await directory("debian", {});
      await directory("debian", {
        "apt-get": `case "$*" in
          *update*) : > ${path}/lists;;
          *install*) [ -e ${path}/lists ] || { echo "E: Unable to locate package"; exit 100; }
            printf '#!/bin/sh\\n${saysVersion("2.9.10")}\\n' > ${path}/nats-server; /bin/chmod 755 ${path}/nats-server;;
        esac`,
      });
      const said: string[] = [];
      const say = (line: string) => said.push(line);
      expect(await findNatsServer({ env: { PATH: path }, install: true, say, alsoIn: [] })).toEqual({
        path: join(path, "nats-server"),
        version: "2.9.10",
      });
      expect(said.join("\n")).toMatch(/installing[\s\S]*Refreshing/);
    },
  );

  test("compares versions by number", () => {
    expect(compareVersions("2.10.0", "2.9.25")).toBeGreaterThan(0);
    expect(compareVersions("2.9.10", "2.9.10")).toBe(0);
    expect(compareVersions("2.11.0-RC.1", "2.11.0")).toBe(0);
  });
});
