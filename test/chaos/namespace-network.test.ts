/** The network that the long runs break: each fault loses what it says, where it says, and nothing is left of it. */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { createInterface } from "node:readline";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Fault, FaultKind } from "./faults.ts";
import { NamespaceNetwork, openRouter, slowKbit } from "./namespace-network.ts";
import {
  addNamespace,
  entering,
  namespaceName,
  removeNamespaces,
  run,
  runIn,
  sweepNamespaces,
  whyNoNamespaces,
} from "./namespaces.ts";

const reason = whyNoNamespaces();
const PORT = 9_000;
/** Prints each datagram that arrives, a line each; refuses nothing, answers nothing. */
const EAR = `const s = require("node:dgram").createSocket("udp4");
s.on("message", (m) => console.log(String(m)));
s.bind(${PORT}, () => { require("node:net").createServer().listen(${PORT}, () => console.log("ready")); });`;

/** A host that listens, and what it has heard. */
class Ear implements AsyncDisposable {
  readonly heard: string[] = [];
  readonly #child: ChildProcess;
  #told = () => {};

  constructor(network: NamespaceNetwork, party: string) {
    const { command, args } = network.at(party, process.execPath, ["-e", EAR]);
    this.#child = spawn(command, args, { stdio: ["ignore", "pipe", "inherit"] });
    createInterface({ input: this.#child.stdout! }).on("line", (line) => {
      this.heard.push(line);
      this.#told();
    });
  }

  async hears(text: string): Promise<void> {
    while (!this.heard.includes(text))
      await new Promise<void>((resolve) => {
        this.#told = resolve;
      });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const gone = once(this.#child, "exit");
    this.#child.kill("SIGKILL");
    await gone;
  }
}

if (reason !== undefined) test.skip(`the network of namespaces: ${reason}`);

describe.skipIf(reason !== undefined)("between two hosts", () => {
  const pid = process.pid;
  let network: NamespaceNetwork;
  let ears: Record<"a" | "b", Ear>;
  const addresses = { a: "", b: "" };
  let said = 0;

  beforeAll(async () => {
    openRouter(pid);
    network = new NamespaceNetwork(pid);
    for (const party of ["a", "b"] as const) addresses[party] = network.host(party);
    ears = { a: new Ear(network, "a"), b: new Ear(network, "b") };
    await Promise.all([ears.a.hears("ready"), ears.b.hears("ready")]);
  });

  afterAll(async () => {
    await Promise.all(Object.values(ears).map((ear) => ear[Symbol.asyncDispose]()));
    await network[Symbol.asyncDispose]();
    removeNamespaces(pid);
  });

  function fault(kind: FaultKind, change: Partial<Fault> = {}): Fault {
    const pairs = [["a", "b"]] as const;
    return { id: 1, kind, target: "a", pairs, atMs: 0, lengthMs: 0, amountMs: 0, lossPercent: 0, ...change };
  }

  function say(from: "a" | "b", times = 1): string[] {
    const to = from === "a" ? "b" : "a";
    const texts = Array.from({ length: times }, () => `${++said}`);
    const lines = texts.map((text) => `echo -n ${text} > /dev/udp/${addresses[to]}/${PORT}`);
    const { command, args } = network.at(from, "bash", ["-c", `${lines.join("\n")}\ntrue`]);
    // With its link down a host may say so itself: then nothing has left it.
    spawnSync(command, [...args], { stdio: "ignore" });
    return texts;
  }

  /** How many of `times` arrived. Datagrams do not overtake each other, so the last one tells that no more will come. */
  async function arrived(broken: Fault, from: "a" | "b", times = 1): Promise<number> {
    const ear = ears[from === "a" ? "b" : "a"];
    network.break(broken);
    const texts = say(from, times);
    network.heal(broken);
    const [last] = say(from);
    await ear.hears(last!);
    return texts.filter((text) => ear.heard.includes(text)).length;
  }

  function connect(from: "a" | "b"): string {
    const to = from === "a" ? "b" : "a";
    const { command, args } = network.at(from, "timeout", [
      ...["0.7", "bash", "-c"],
      `exec 3<>/dev/tcp/${addresses[to]}/${PORT}`,
    ]);
    const { status, stderr } = spawnSync(command, [...args], { encoding: "utf8" });
    return status === 0 ? "connected" : status === 124 ? "no answer" : stderr;
  }

  test.each([
    ["silence", 0, 0],
    ["one-way", 0, 1],
    ["unplug", 0, 0],
  ] as const)("%s: of a's words %i arrive, of b's %i", async (kind, ofA, ofB) => {
    expect(await arrived(fault(kind), "a")).toBe(ofA);
    expect(await arrived(fault(kind), "b")).toBe(ofB);
  });

  test("loss takes some and not all", async () => {
    const came = await arrived(fault("loss", { lossPercent: 40 }), "a", 200);
    expect(came).toBeGreaterThan(60);
    expect(came).toBeLessThan(180);
  });

  test("a cut refuses connections, silence lets them wait, and both end", () => {
    network.break(fault("cut"));
    expect(connect("b")).toMatch(/refused/i);
    network.heal(fault("cut"));
    network.break(fault("silence"));
    expect(connect("b")).toBe("no answer");
    network.heal(fault("silence"));
    expect(connect("b")).toBe("connected");
  });

  test("a slow link has the least rate of its faults, at both ends, and its own afterwards", () => {
    const rates = () => [
      /rate (\d+\w+)/.exec(
        run("tc", ["-n", namespaceName(pid, "router"), "qdisc", "show", "dev", "to-a"]),
      )?.[1],
      /rate (\d+\w+)/.exec(runIn(namespaceName(pid, "a"), "tc", ["qdisc", "show", "dev", "eth0"]))?.[1],
    ];
    const [one, other] = [fault("slow", { amountMs: 50 }), fault("slow", { id: 2, amountMs: 250 })];
    network.break(one);
    network.break(other);
    expect(rates()).toEqual([`${slowKbit(250)}Kbit`, `${slowKbit(250)}Kbit`]);
    network.heal(other);
    expect(rates()).toEqual([`${slowKbit(50)}Kbit`, `${slowKbit(50)}Kbit`]);
    network.heal(one);
    expect(rates()).toEqual([undefined, undefined]);
  });

  test("a host without power stays silent until the last of its faults is healed", async () => {
    const [power, cable] = [fault("kill host"), fault("unplug", { id: 2 })];
    network.powerOff(power);
    network.break(cable);
    network.heal(power);
    const [lost] = say("b");
    network.heal(cable);
    const [last] = say("b");
    await ears.a.hears(last!);
    expect(ears.a.heard).not.toContain(lost);
  });
});

test.skipIf(reason !== undefined)(
  "what a run that was killed left behind is removed, with what runs in it",
  async () => {
    const dead = spawn("true");
    await once(dead, "exit");
    const name = namespaceName(dead.pid!, "left");
    addNamespace(name);
    const [first, ...rest] = entering(name);
    const inside = spawn(first!, [...rest, "sleep", "600"], { stdio: "ignore" });
    const gone = once(inside, "exit");
    await once(inside, "spawn");
    expect(sweepNamespaces()).toContain(name);
    await gone;
    expect(existsSync(`/run/netns/${name}`)).toBe(false);
  },
);
