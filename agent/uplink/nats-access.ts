/** Where this agent pulls from and as whom, as the last welcome said: kept, so that it can start while the gateway is away. */
import { readFileSync, renameSync, writeFileSync } from "node:fs";
import { z } from "zod";

const NatsAccess = z.object({
  servers: z.array(z.string()).min(1),
  user: z.string(),
  password: z.string(),
  inboxPrefix: z.string(),
  stream: z.string(),
  consumer: z.string(),
  /** Empty: no TLS, which is for loopback only. */
  caPem: z.string(),
});
export type NatsAccess = z.infer<typeof NatsAccess>;

/** Undefined when there is none yet, or none that can be read: the next welcome brings it. */
export function loadAccess(file: string): NatsAccess | undefined {
  try {
    return NatsAccess.parse(JSON.parse(readFileSync(file, "utf8")));
  } catch {
    return undefined;
  }
}

/** Holds a password: readable by the agent's user alone. */
export function keepAccess(file: string, access: NatsAccess): void {
  const temporary = `${file}.new`;
  writeFileSync(temporary, JSON.stringify(access), { mode: 0o600 });
  renameSync(temporary, file);
}
