/** Which nats-server keeps what it acknowledged over a power cut of its host, and what to say of one that may not. */
import type { NatsConnection } from "nats";
import type { Logger } from "pino";

/** `sync_interval: always` came with 2.10.0. */
export function canSyncAlways(version: string): boolean {
  const [major = 0, minor = 0] = version.split(".").map(Number);
  return major > 2 || (major === 2 && minor >= 10);
}

/** Of a NATS that others run: of a cluster one server may lose its host, and nobody can ask a single one whether it syncs. */
export function isAlone({ info }: NatsConnection): boolean {
  return info !== undefined && info.cluster === undefined;
}

/** @param copied whether what it acknowledges is copied here, as `--nats-copy` says */
export function sayWhatAPowerCutTakes({ info }: NatsConnection, copied: boolean, log: Logger): void {
  const version = info?.version ?? "";
  if (copied)
    return log.info(
      { version },
      canSyncAlways(version)
        ? "NATS is a single server: a copy of what it acknowledges is kept here until it is on its disk. With sync_interval: always in its configuration that is not needed: start with --nats-copy off"
        : "NATS is a single server that does not sync what it acknowledges: a copy is kept here until it is on its disk",
    );
  if (canSyncAlways(version))
    return log.info(
      { version },
      "NATS is a single server, and said to sync each write: what it acknowledged survives a power cut of its host only with sync_interval: always in its configuration",
    );
  log.warn(
    { version },
    "NATS is a single server that syncs its files every two minutes or later: a power cut of its host can lose what was acknowledged since. Start with --nats-copy on",
  );
}
