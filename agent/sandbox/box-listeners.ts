/**
 * Opens listeners in the network of a box and brings them out of it. A socket belongs to the network in which it was
 * made, whoever holds it: so a process that enters the box's network, and nothing else of it, makes them, hands them to
 * the supervisor and ends. The step's connections then arrive here, and nothing of ours runs in the box.
 */
import { spawn } from "node:child_process";
import { Server } from "node:net";
import { z } from "zod";
import type { NetworkPlan } from "./network-plan.ts";

const OPEN_WITHIN_MS = 15_000;
const SAID_MAX_CHARS = 500;

/** What bubblewrap says on `--info-fd`. */
export const BoxInfo = z.object({ "child-pid": z.int().min(2), "net-namespace": z.int().optional() });
export type BoxInfo = z.infer<typeof BoxInfo>;

export interface Endpoint {
  address: string;
  port: number;
}

/**
 * Ends with 3 where it is not in the network that was meant: then it would open the step's way to everybody.
 * CommonJS and without imports of ours: it runs with `node -e`, from whatever this file has become part of.
 */
const PROGRAM = `
"use strict";
const { createServer } = require("node:net");
const { readlinkSync } = require("node:fs");
const { endpoints, own, wanted } = JSON.parse(process.argv[1]);
const here = readlinkSync("/proc/self/ns/net");
if (here === own || (wanted !== null && here !== "net:[" + wanted + "]")) process.exit(3);
process.once("disconnect", () => process.exit(5));
const next = (index) => {
  if (index === endpoints.length) process.exit(0);
  const { address, port } = endpoints[index];
  const server = createServer();
  server.once("error", (err) => { process.stderr.write(err.message); process.exit(4); });
  server.listen({ host: address, port }, () => process.send(index, server, () => next(index + 1)));
};
next(0);
`;

/**
 * Resolves with a listener for each endpoint, in their order. Nothing of the step may run before: until the other process
 * has ended, it could take connections as well.
 *
 * @throws Error with the reason; nothing is left open then
 */
export async function openListeners(
  { nsenter, userNamespace }: Pick<NetworkPlan, "nsenter" | "userNamespace">,
  info: BoxInfo,
  { endpoints, ownNetwork }: { endpoints: readonly Endpoint[]; ownNetwork: string },
): Promise<Server[]> {
  const at = `/proc/${info["child-pid"]}/ns`;
  const namespaces = userNamespace
    ? [`--user=${at}/user`, "--preserve-credentials", `--net=${at}/net`]
    : [`--net=${at}/net`];
  const wanted = info["net-namespace"] ?? null;
  const asked = JSON.stringify({ endpoints, own: ownNetwork, wanted });
  const child = spawn(nsenter, [...namespaces, "--", process.execPath, "-e", PROGRAM, asked], {
    cwd: "/",
    env: {},
    stdio: ["ignore", "ignore", "pipe", "ipc"],
    timeout: OPEN_WITHIN_MS,
    killSignal: "SIGKILL",
  });
  const servers: Server[] = [];
  let said = "";
  child.stderr!.on("data", (data: Buffer) => {
    if (said.length < SAID_MAX_CHARS) said += data.toString("utf8");
  });
  child.on("message", (index, server) => {
    if (server instanceof Server) servers[Number(index)] = server;
  });
  const end = await new Promise<string>((resolve) => {
    child.once("error", (err) => resolve(err.message));
    child.once("close", (code, signal) => resolve(code === 0 ? "" : describeEnd(code, signal, said)));
  });
  // Messages come before the end of their channel, and "close" after both.
  if (end === "" && endpoints.every((_, index) => servers[index] !== undefined)) return servers;
  for (const server of servers) server?.close();
  throw new Error(end === "" ? "not every listener has come out of the box" : end);
}

function describeEnd(code: number | null, signal: string | null, said: string): string {
  if (code === 3) return "the network that was entered is not the box's";
  const how = signal === null ? `it ended with ${code}` : `it was ended by ${signal}`;
  return said.trim() === "" ? how : `${said.trim()} (${how})`;
}
