/** `insitu version` */
import { PROTOCOL_MAJOR, PROTOCOL_MINOR, SOFTWARE_VERSION } from "../../../shared/wire/protocol.ts";
import { EXIT } from "../exit-codes.ts";
import type { Invocation } from "../invocation.ts";

const WAIT_MS = 1_500;

/** Says also what the server runs; that it is away is no failure here. */
export async function version(invocation: Invocation): Promise<number> {
  const { output, signal } = invocation;
  const client = {
    software: `insitu ${SOFTWARE_VERSION}`,
    protocol: { major: PROTOCOL_MAJOR, minor: PROTOCOL_MINOR },
  };
  const server = await serverVersion(invocation, AbortSignal.any([signal, AbortSignal.timeout(WAIT_MS)]));
  if (!output.people) {
    await output.data({ client, server });
    return EXIT.ok;
  }
  await output.line(client.software);
  if (server) await output.line(`server: ${server.software} at ${server.address}`);
  else await output.note("server: none reached");
  return EXIT.ok;
}

async function serverVersion(invocation: Invocation, signal: AbortSignal) {
  try {
    const api = await invocation.client();
    return { ...(await api.version(signal)), address: api.target.server };
  } catch {
    return null; // asked in passing; commands that need the server say why it is away
  }
}
