/** Boxes with a way out, at work: the real bubblewrap and nsenter, in both modes. */
import { once } from "node:events";
import { existsSync, readlinkSync, writeFileSync } from "node:fs";
import { type AddressInfo, createServer } from "node:net";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { testDirectory } from "../agent.fixture.ts";
import { probeHost } from "./box-host.ts";
import { openListeners } from "./box-listeners.ts";
import { type BoxHost, planBox } from "./box-plan.ts";
import { spawnBoxed } from "./boxed-process.ts";
import { hostsFile, planNetwork } from "./network-plan.ts";

const user = { uid: 62_017, gid: 62_017 };
const limits = { openFiles: 256, fileSizeBytes: 1024 * 1024, tmpBytes: 1024 * 1024 };

async function hostHere(): Promise<BoxHost> {
  const facts = await probeHost({ path: process.env.PATH ?? "", user, clock: systemClock });
  if (!facts.can) throw new Error(facts.reason);
  return facts.host;
}

describe.each(["drop", "user-namespace"] as const)("a box of the mode %s", (mode) => {
  test("has its target under its own name and port, also one below 1024, and no other name", async () => {
    using directory = testDirectory();
    const target = createServer((socket) => socket.end("hello\n")).listen(0, "127.0.0.1");
    await once(target, "listening");
    const { port } = target.address() as AddressInfo;
    const host = { ...(await hostHere()), mode };
    const plan = planNetwork({ allow: ["db.test:443"], mayBeLocal: () => true, host });
    const hosts = join(directory.path, "hosts");
    writeFileSync(hosts, hostsFile(plan));
    const script = "exec 3<>/dev/tcp/db.test/443; cat <&3; (exec 3<>/dev/tcp/other.test/443) 2>&1; true";
    const box = planBox(host, {
      argv: ["bash", "-c", script],
      env: { PATH: "/usr/bin:/bin" },
      ...{ cwd: "/", writable: [], readable: [], hidden: [], user, limits },
      // Seen from outside, the name is another: the supervisor dials what the plan says.
      network: {
        plan: { ...plan, targets: plan.targets.map((one) => ({ ...one, host: "127.0.0.1", port })) },
        hosts,
      },
    });
    const boxed = spawnBoxed(box, systemClock);
    let said = "";
    for (const stream of [boxed.child.stdout!, boxed.child.stderr!])
      stream.on("data", (data: Buffer) => {
        said += data.toString();
      });
    await once(boxed.child, "close");
    const traffic = await boxed.traffic();
    target.close();
    expect(boxed.trouble()).toBeUndefined();
    expect(said).toMatch(/^hello\n[\s\S]*other\.test: /);
    expect(traffic).toEqual({ targets: [[1, 0, 0, 6]], refused: 0 });
  });
});

test("a box whose way out cannot be opened runs nothing, and says why", async () => {
  const host = await hostHere();
  using directory = testDirectory();
  const ran = join(directory.path, "ran");
  const plan = planNetwork({ allow: [], mayBeLocal: () => false, host: { ...host, nsenter: "/bin/false" } });
  const box = planBox(host, {
    argv: ["/bin/sh", "-c", `echo ran >${ran}`],
    env: {},
    ...{ cwd: "/", writable: [directory.path], readable: [], hidden: [], user, limits },
    network: { plan, hosts: "/dev/null" },
  });
  const boxed = spawnBoxed(box, systemClock);
  await once(boxed.child, "exit");
  await boxed.traffic();
  expect(boxed.trouble()).toMatchObject({ code: "NETWORK", message: expect.stringMatching(/ended with 1/) });
  expect(existsSync(ran)).toBe(false);
});

test.each([
  ["the host's own", {}],
  ["not the one that bubblewrap named", { "net-namespace": 1 }],
])("no listener is opened in a network that is %s", async (_name, more) => {
  const { nsenter } = await hostHere();
  const ownNetwork = "net-namespace" in more ? "" : readlinkSync("/proc/self/ns/net");
  const endpoints = [{ address: "127.0.0.1", port: 0 }];
  await expect(
    openListeners(
      { nsenter, userNamespace: false },
      { "child-pid": process.pid, ...more },
      { endpoints, ownNetwork },
    ),
  ).rejects.toThrow("the network that was entered is not the box's");
});
