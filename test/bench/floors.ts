/** What the machine gives without the product: raw JetStream rounds, and a bare gRPC echo. */
import {
  type ClientDuplexStream,
  credentials,
  makeGenericClientConstructor,
  Server,
  ServerCredentials,
  type ServerDuplexStream,
} from "@grpc/grpc-js";
import { AckPolicy, type NatsConnection, RetentionPolicy, StorageType } from "nats";
import { systemClock } from "../../shared/system.ts";
import { percentile } from "./statistics.ts";

export interface Floors {
  /** Publish, deliver, acknowledge, one at a time; milliseconds. */
  rawRound: { p50Ms: number; p99Ms: number };
  /** The same with many in flight; rounds a second. */
  rawRoundsPerSecond: number;
  grpcEcho: { p50Ms: number; p99Ms: number };
}

const SEQUENTIAL = 2_000;
const PIPELINED = 20_000;
const IN_FLIGHT = 200;

export async function measureFloors(connection: NatsConnection): Promise<Floors> {
  const manager = await connection.jetstreamManager();
  await manager.streams.add({
    name: "FLOOR",
    subjects: ["floor.>"],
    storage: StorageType.File,
    retention: RetentionPolicy.Workqueue,
  });
  await manager.consumers.add("FLOOR", {
    durable_name: "floor",
    ack_policy: AckPolicy.Explicit,
    max_ack_pending: 20_000,
  });
  try {
    const rawRound = await sequentialRounds(connection);
    const rawRoundsPerSecond = await pipelinedRounds(connection);
    return { rawRound, rawRoundsPerSecond, grpcEcho: await grpcEcho() };
  } finally {
    await manager.streams.delete("FLOOR");
  }
}

async function sequentialRounds(connection: NatsConnection): Promise<Floors["rawRound"]> {
  const jetstream = connection.jetstream();
  const consumer = await jetstream.consumers.get("FLOOR", "floor");
  const payload = Buffer.alloc(500, 120);
  const times: number[] = [];
  let delivered = (): void => {};
  const messages = await consumer.consume({
    max_messages: 100,
    callback: (message) => {
      message.ack();
      delivered();
    },
  });
  for (let i = 0; i < SEQUENTIAL; i++) {
    const start = systemClock.monotonicMs();
    const arrived = new Promise<void>((resolve) => {
      delivered = resolve;
    });
    await jetstream.publish("floor.a", payload);
    await arrived;
    times.push(systemClock.monotonicMs() - start);
  }
  messages.stop();
  return { p50Ms: percentile(times, 50), p99Ms: percentile(times, 99) };
}

async function pipelinedRounds(connection: NatsConnection): Promise<number> {
  const jetstream = connection.jetstream();
  const consumer = await jetstream.consumers.get("FLOOR", "floor");
  const payload = Buffer.alloc(500, 120);
  let done = 0;
  let finish = (): void => {};
  const finished = new Promise<void>((resolve) => {
    finish = resolve;
  });
  const start = systemClock.monotonicMs();
  const messages = await consumer.consume({
    max_messages: 1_000,
    callback: (message) => {
      message.ack();
      if (++done === PIPELINED) finish();
    },
  });
  let sent = 0;
  const sender = async (): Promise<void> => {
    while (sent++ < PIPELINED) await jetstream.publish("floor.a", payload);
  };
  await Promise.all(Array.from({ length: IN_FLIGHT }, sender));
  await finished;
  messages.stop();
  return PIPELINED / ((systemClock.monotonicMs() - start) / 1_000);
}

async function grpcEcho(): Promise<Floors["grpcEcho"]> {
  const identity = { requestStream: true, responseStream: true } as const;
  const pass = (bytes: Buffer): Buffer => bytes;
  const definition = {
    Echo: {
      path: "/floor.Echo/Echo",
      ...identity,
      requestSerialize: pass,
      requestDeserialize: pass,
      responseSerialize: pass,
      responseDeserialize: pass,
    },
  };
  const server = new Server();
  server.addService(definition, {
    Echo: (call: ServerDuplexStream<Buffer, Buffer>) => {
      call.on("data", (bytes: Buffer) => call.write(bytes));
      call.on("end", () => call.end());
    },
  });
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync("127.0.0.1:0", ServerCredentials.createInsecure(), (err, bound) =>
      err ? reject(err) : resolve(bound),
    );
  });
  const Client = makeGenericClientConstructor(definition, "Echo");
  const client = new Client(`127.0.0.1:${port}`, credentials.createInsecure());
  const stream = (client as unknown as { Echo(): ClientDuplexStream<Buffer, Buffer> }).Echo();
  const times: number[] = [];
  const payload = Buffer.alloc(500, 120);
  for (let i = 0; i < SEQUENTIAL; i++) {
    const start = systemClock.monotonicMs();
    const answer = new Promise((resolve) => stream.once("data", resolve));
    stream.write(payload);
    await answer;
    times.push(systemClock.monotonicMs() - start);
  }
  const ended = new Promise((resolve) => stream.once("end", resolve));
  stream.end();
  await ended;
  client.close();
  server.forceShutdown();
  return { p50Ms: percentile(times, 50), p99Ms: percentile(times, 99) };
}
