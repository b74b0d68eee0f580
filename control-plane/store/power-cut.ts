/** Which nats-server keeps what it acknowledged over a power cut of its host, and what to say of one that may not. */
import type { NatsConnection } from "nats";
import type { Logger } from "pino";

/** `sync_interval: always` came with 2.10.0. */
export function canSyncAlways(version: string): boolean {
  const [major = 0, minor = 0] = version.split(".").map(Number);
  return major > 2 || (major === 2 && minor >= 10);
}

/** Of a NATS that others run; of a cluster one server may lose its host. */
export function sayWhatAPowerCutTakes({ info }: NatsConnection, log: Logger): void {
  if (!info || info.cluster !== undefined) return;
  const { version } = info;
  if (canSyncAlways(version))
    return log.info(
      { version },
      "NATS is a single server: what it acknowledged survives a power cut of its host only with sync_interval: always in its configuration",
    );
  log.warn(
    { version },
    "NATS is a single server that syncs its files every two minutes or later: a power cut of its host can lose what was acknowledged since. Start without --nats-url, which syncs each write, or use 2.10 or newer with sync_interval: always",
  );
}
