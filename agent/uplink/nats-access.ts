/** Where this agent pulls from and as whom, as the last welcome said: kept, so that it can start while the gateway is away. */
import { readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { z } from "zod";
import { makeNkey } from "../../shared/wire/nkey.ts";

const NatsAccess = z.object({
  servers: z.array(z.string()).min(1),
  user: z.string(),
  password: z.string(),
  inboxPrefix: z.string(),
  stream: z.string(),
  consumer: z.string(),
  /** Empty: no TLS, which is for loopback only. */
  caPem: z.string(),
  /** For this host's key, in place of user and password; empty where NATS has no accounts. */
  userJwt: z.string().default(""),
  /** The servers are reached through the port of a gateway. */
  throughGateway: z.boolean().default(false),
});
const UserKey = z.object({ publicKey: z.string(), seed: z.string().startsWith("SU") });
export type UserKey = z.infer<typeof UserKey>;
export type NatsAccess = z.infer<typeof NatsAccess>;

/** Without what is not ours, and in one order: two that say the same are the same text. */
export function normalAccess(told: NatsAccess): NatsAccess {
  return NatsAccess.parse(told);
}

/** Undefined when there is none yet, or none that can be read: the next welcome brings it. */
export function loadAccess(file: string): NatsAccess | undefined {
  try {
    return NatsAccess.parse(JSON.parse(readFileSync(file, "utf8")));
  } catch {
    return undefined;
  }
}

/** May hold a password: readable by the agent's user alone. */
export function keepAccess(file: string, access: NatsAccess): void {
  keep(file, JSON.stringify(access));
}

/** Void, the control plane says. */
export function forgetAccess(file: string): void {
  rmSync(file, { force: true });
}

/** Made here, and never sent: NATS is shown that the agent has it. A damaged one gives way to a new one. */
export function loadOrMakeUserKey(file: string): UserKey {
  try {
    return UserKey.parse(JSON.parse(readFileSync(file, "utf8")));
  } catch {
    const { publicKey, seed } = makeNkey("user");
    keep(file, JSON.stringify({ publicKey, seed }));
    return { publicKey, seed };
  }
}

function keep(file: string, text: string): void {
  const temporary = `${file}.new`;
  writeFileSync(temporary, text, { mode: 0o600, flush: true } as Parameters<typeof writeFileSync>[2]);
  renameSync(temporary, file);
}
