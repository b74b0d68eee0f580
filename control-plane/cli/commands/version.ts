/** `insitu version`. */
import { InsituError } from "../../../shared/errors.ts";
import { PROTOCOL_MAJOR, PROTOCOL_MINOR, SOFTWARE_VERSION } from "../../../shared/wire/protocol.ts";
import { EXIT } from "../exit-codes.ts";
import type { Invocation } from "../invocation.ts";

const SERVER_WAIT_MS = 2_000;

/** The server's version is an extra: 0 when it is away, too. */
export async function version(
  invocation: Invocation,
  _args: string[],
  options: { client?: boolean },
): Promise<number> {
  const { output } = invocation;
  const protocol = { major: PROTOCOL_MAJOR, minor: PROTOCOL_MINOR };
  const client = { software: `insitu ${SOFTWARE_VERSION}`, protocol };
  const server = options.client ? null : await serverVersion(invocation);
  if (!output.people) {
    await output.data({ client, server: server?.found ?? null });
  } else {
    await output.line(`client  ${client.software}, protocol ${protocol.major}.${protocol.minor}`);
    if (server?.found) {
      const { major, minor } = server.found.protocol;
      await output.line(`server  ${server.found.software}, protocol ${major}.${minor}, ${server.address}`);
    }
  }
  if (server && !server.found) await output.note(`server  not reached: ${server.reason}`);
  return EXIT.ok;
}

async function serverVersion(invocation: Invocation) {
  try {
    const api = await invocation.client();
    const signal = AbortSignal.any([invocation.signal, AbortSignal.timeout(SERVER_WAIT_MS)]);
    return { address: api.target.server, found: await api.version(signal) };
  } catch (thrown) {
    invocation.signal.throwIfAborted();
    return { found: null, reason: InsituError.from(thrown).message };
  }
}
