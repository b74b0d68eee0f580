import { expect, test } from "vitest";
import type { Classification } from "../../shared/model/spec.ts";
import { systemClock } from "../../shared/system.ts";
import { probeHost } from "./box-host.ts";
import { type BoxHost, exposed, planBox } from "./box-plan.ts";
import { Sandbox } from "./sandbox.ts";
import { SandboxConfig } from "./sandbox-config.ts";
import { seccompFilter } from "./seccomp.ts";

const facts = { can: false, reason: "no bubblewrap" } as const;
const without = (config: object) =>
  new Sandbox({
    config: SandboxConfig.parse(config),
    facts,
    groups: { host: {}, lacks: {} },
    hostMemoryBytes: 2 ** 30,
    stateDir: "/state",
    datasets: {},
  });

test.each<[object, Classification | null, boolean]>([
  [{}, null, true],
  [{}, "internal", true],
  [{}, "confidential", false],
  [{ mode: "off" }, "secret", false],
  [{ unboxedUpTo: "secret" }, "secret", true],
  [{ unboxedUpTo: "public" }, "internal", false],
  [{ mode: "required" }, null, false],
])("without a box, %j lets a step that reads %s start: %s", (config, highest, starts) => {
  const refusal = without(config).refusal(highest);
  expect(refusal === undefined).toBe(starts);
  if (refusal !== undefined) expect(refusal).toMatch(/no sandbox/);
});

test("the environment is told to the innermost shell alone, and to it word for word", () => {
  const host: BoxHost = {
    ...{ bwrap: "/usr/bin/bwrap", version: "0.8.0", nsenter: "", setpriv: "/usr/bin/setpriv", seccomp: "" },
    ...{ mode: "drop", system: [], etc: [] },
  };
  const box = planBox(host, {
    argv: ["true"],
    env: { TOKEN: "a'b\n$c" },
    cwd: "/w",
    writable: ["/w"],
    readable: [],
    hidden: [{ path: "/w/x/y", kind: "directory" }],
    user: { uid: 7, gid: 8 },
    limits: { openFiles: 10, fileSizeBytes: 1024, tmpBytes: 1024 },
  });
  expect(box.argv.join(" ")).not.toContain("a'b");
  expect(box.stdin).toContain("export TOKEN='a'\\''b\n$c'\n");
  // Hiding is laid over what shows it.
  expect(box.argv.lastIndexOf("/w/x/y")).toBeGreaterThan(box.argv.lastIndexOf("/w"));
  expect(box.argv).toEqual(expect.arrayContaining(["--reuid", "7", "--regid", "8", "--bounding-set=-all"]));
});

test("what is hidden is found below what shows it, also by another name", () => {
  const hidden = [{ path: "/data/b" }, { path: "/database" }];
  expect(exposed([{ path: "/link", real: "/data" }], hidden)).toEqual([{ path: "/link/b" }]);
  expect(exposed([{ path: "/data/b/c", real: "/data/b/c" }], hidden)).toEqual([]);
});

test("a filter fits the kernel's program for each architecture that is known, and there is none for others", () => {
  for (const architecture of ["x64", "arm64"]) {
    const filter = seccompFilter(architecture)!;
    const length = filter.length / 8;
    expect(Number.isInteger(length)).toBe(true);
    for (let at = 0; at < length; at++) {
      const isJump = (filter.readUInt16LE(at * 8) & 0x07) === 0x05;
      // A jump beyond the end would make the kernel refuse the whole program.
      if (isJump) expect(at + 1 + Math.max(filter[at * 8 + 2]!, filter[at * 8 + 3]!)).toBeLessThan(length);
    }
    expect(filter.readUInt16LE((length - 1) * 8)).toBe(0x06);
  }
  expect(seccompFilter("riscv64")).toBeUndefined();
});

test("a host that cannot says why", async () => {
  const user = { uid: 62_017, gid: 62_017 };
  const found = await probeHost({ path: "/bin", user, clock: systemClock, architecture: "riscv64" });
  expect(found).toEqual({ can: false, reason: expect.stringMatching(/riscv64/) });
});

test("a step that requires a box is refused without one, whatever its data", () => {
  const sandbox = without({ unboxedUpTo: "secret" });
  expect(sandbox.refusal("public", true)).toMatch(/no sandbox .*no bubblewrap.*the step requires one/);
  expect(sandbox.facts).toMatchObject({ boxes: false, unboxedUpTo: "secret", held: {}, notHeld: {} });
});
