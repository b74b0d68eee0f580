/** The unit that is shipped. Whether systemd likes it is asked where systemd is installed. */
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";

const UNIT = fileURLToPath(new URL("../deploy/systemd/insitu-agent.service", import.meta.url));
const ANALYZE = "/usr/bin/systemd-analyze";
const settings = readFileSync(UNIT, "utf8")
  .split("\n")
  .filter((line) => /^[A-Z]\w+=/.test(line));

test("steps outlive the agent's service, which comes back unless its configuration is at fault", () => {
  expect(settings).toEqual(
    expect.arrayContaining(["KillMode=process", "Restart=always", "RestartPreventExitStatus=2 6"]),
  );
  // A restart would take the temporary files and sockets from what runs on.
  expect(settings.filter((line) => line.startsWith("PrivateTmp="))).toEqual([]);
});

test("nothing that bubblewrap needs is forbidden", () => {
  const forbidding =
    /^(RestrictNamespaces|ProtectProc|ProtectKernelTunables|ProtectKernelLogs|ProtectControlGroups|ProtectHostname|SystemCallFilter|MemoryDenyWriteExecute)=/;
  expect(settings.filter((line) => forbidding.test(line))).toEqual([]);
});

test.skipIf(!existsSync(ANALYZE))("systemd finds no fault in it", () => {
  expect(execFileSync(ANALYZE, ["verify", UNIT], { encoding: "utf8", stdio: "pipe" })).toBe("");
});
