import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";

const ROOT = fileURLToPath(new URL("..", import.meta.url));

interface Locked {
  version: string;
  dev?: boolean;
  devOptional?: boolean;
}

test("the SBOM names every package that is installed to run, with version, licence and digest, and none that is not", () => {
  const directory = mkdtempSync(join(tmpdir(), "insitu-sbom-"));
  try {
    const file = join(directory, "sbom.cdx.json");
    execFileSync(process.execPath, [join(ROOT, "scripts/sbom.mjs"), file], { cwd: ROOT });
    const { bomFormat, components } = JSON.parse(readFileSync(file, "utf8")) as {
      bomFormat: string;
      components: { name: string; version: string; licenses?: unknown[]; hashes?: unknown[] }[];
    };
    expect(bomFormat).toBe("CycloneDX");
    const { packages } = JSON.parse(readFileSync(join(ROOT, "package-lock.json"), "utf8")) as {
      packages: Record<string, Locked>;
    };
    // Binaries of other platforms are locked, but not installed here.
    const installed = Object.entries(packages).filter(
      ([path, { dev, devOptional }]) => path !== "" && !dev && !devOptional && existsSync(join(ROOT, path)),
    );
    const wanted = installed.map(([path, { version }]) => `${path.split("node_modules/").at(-1)}@${version}`);
    const named = components.map(({ name, version }) => `${name}@${version}`);
    expect(named.sort()).toEqual([...new Set(wanted)].sort());
    for (const { name, licenses, hashes } of components)
      expect([name, licenses?.length, hashes?.length]).toEqual([
        name,
        expect.any(Number),
        expect.any(Number),
      ]);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
});
