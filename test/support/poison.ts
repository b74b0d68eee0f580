/** Poison as the control plane keeps it, over the connection of a test. The streams have to be there. */
import type { NatsConnection } from "nats";
import { pino } from "pino";
import { PoisonStream } from "../../control-plane/store/poison-stream.ts";
import { systemClock } from "../../shared/system.ts";

export async function poisonOf(connection: NatsConnection): Promise<PoisonStream> {
  const manager = await connection.jetstreamManager();
  return new PoisonStream({ connection, manager, clock: systemClock, log: pino({ level: "silent" }) });
}
