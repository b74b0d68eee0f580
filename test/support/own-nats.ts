/** A NATS of an operator's own: `insitu nats init` as shipped, and nats-servers started with what it wrote, unchanged. */
import { execFileSync } from "node:child_process";
import { cpSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect as connectTls } from "node:tls";
import { fileURLToPath } from "node:url";
import { findNatsServer } from "../../scripts/find-nats-server.mjs";
import { freePorts, NatsProcess } from "./nats-cluster.ts";

const INSITU = fileURLToPath(new URL("../../dist/insitu.js", import.meta.url));

export interface OwnNats extends AsyncDisposable {
  /** Empty, of this test; removed with it. */
  directory: string;
  nodes: readonly NatsProcess[];
  hosts: readonly string[];
  routePort: number;
  natsUrl: string;
  servers: string[];
  secrets: string;
  caFile: string;
  caPem: string;
}

/** As an operator does it: configurations written anew over the former ones, and one nats-server after the other. */
export async function renewNodes(nats: OwnNats, name: string): Promise<void> {
  const out = join(nats.directory, name);
  execFileSync(process.execPath, [INSITU, "nats", "config", "--secrets", nats.secrets, "--out", out], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  for (const [i, node] of nats.nodes.entries()) {
    cpSync(join(out, `n${i + 1}`), join(nats.directory, "out", `n${i + 1}`), { recursive: true });
    await node.kill();
    await node.start();
  }
}

/** As a server would that has this certificate: says what the other end of the route says first. */
export async function joinRoute(
  { routePort }: OwnNats,
  pair?: { chainPem: string; keyPem: string },
): Promise<string> {
  const socket = connectTls({
    host: "127.0.0.1",
    port: routePort,
    // It is the other end that has to find out here.
    rejectUnauthorized: false,
    ...(pair ? { cert: pair.chainPem, key: pair.keyPem } : {}),
  });
  try {
    return await new Promise((resolve) => {
      socket.once("data", (bytes) => resolve(bytes.toString().slice(0, 4)));
      socket.once("error", () => resolve("refused"));
      socket.once("close", () => resolve("refused"));
    });
  } finally {
    socket.destroy();
  }
}

/**
 * Each node has an address of loopback for itself, and all the same ports, as hosts have.
 *
 * @param given directory of secrets that a server has already
 */
export async function startOwnNats(size: 1 | 3, given?: string): Promise<OwnNats> {
  const directory = mkdtempSync(join(tmpdir(), "insitu-own-nats-"));
  const { path: binary } = await findNatsServer();
  const [port, routePort] = (await freePorts(2)) as [number, number];
  const hosts = Array.from({ length: size }, (_, i) => `127.0.0.${i + 1}`);
  const out = join(directory, "out");
  const flags = {
    "--out": out,
    "--nodes": String(size),
    "--host": hosts.join(","),
    "--port": String(port),
    "--route-port": String(routePort),
    "--monitor-port": "0",
    "--install-dir": out,
    "--data-dir": join(directory, "data"),
    // Also servers of before 2.10 are to start.
    "--sync": "interval",
    ...(given === undefined ? {} : { "--secrets": given }),
  };
  const said = execFileSync(
    process.execPath,
    [INSITU, "nats", "init", "-o", "json", ...Object.entries(flags).flat()],
    { encoding: "utf8" },
  );
  const { natsUrl, secrets } = JSON.parse(said) as { natsUrl: string; secrets: string };
  const servers = natsUrl.split(",");
  const nodes = servers.map((url, i) => {
    const name = `n${i + 1}`;
    return new NatsProcess({ name, url, binary, configFile: join(out, name, "nats.conf") });
  });
  const onExit = (): void => void Promise.all(nodes.map((node) => node.kill()));
  process.on("exit", onExit);
  await Promise.all(nodes.map((node) => node.start()));
  const caFile = join(secrets, "ca.crt.pem");
  return {
    directory,
    nodes,
    hosts,
    routePort,
    natsUrl,
    servers,
    secrets,
    caFile,
    caPem: readFileSync(caFile, "utf8"),
    async [Symbol.asyncDispose]() {
      process.off("exit", onExit);
      await Promise.all(nodes.map((node) => node.kill()));
      rmSync(directory, { recursive: true, force: true });
    },
  };
}
