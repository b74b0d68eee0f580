/** Ports that stay a party's own over restarts: below those that the system gives to outgoing connections. */
import { once } from "node:events";
import { createServer } from "node:net";

const FIRST = 20_000;
const LAST = 32_000;

/** Where the search begins differs by process, so that two plants seldom meet. */
export function firstPort(): number {
  return FIRST + ((process.pid * 97) % (LAST - FIRST - 1_000));
}

/** Free ones of loopback, ascending. @param from those below may have been given to somebody who does not listen yet */
export async function ownPorts(count: number, from: number): Promise<number[]> {
  const found: number[] = [];
  let port = from;
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
