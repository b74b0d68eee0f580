/** Ports that stay a party's own over restarts: below those that the system gives to outgoing connections. */
import { once } from "node:events";
import { createServer } from "node:net";

const FIRST = 20_000;
const LAST = 32_000;

/** Free ones of loopback; where the search begins differs by process, so that two plants seldom meet. */
export async function ownPorts(count: number): Promise<number[]> {
  const found: number[] = [];
  let port = FIRST + ((process.pid * 97) % (LAST - FIRST - 1_000));
  for (; found.length < count && port < LAST; port++) if (await isFree(port)) found.push(port);
  if (found.length < count) throw new Error(`no ${count} free ports below ${LAST}`);
  return found;
}

async function isFree(port: number): Promise<boolean> {
  const server = createServer();
  const failed = once(server, "error").then(() => false);
  server.listen(port, "127.0.0.1");
  const free = await Promise.race([once(server, "listening").then(() => true), failed]);
  if (free) await once(server.close(), "close");
  return free;
}
