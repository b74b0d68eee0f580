/** The gateway over real TLS, with messages of any shape and bytes that are no messages, from an agent that may speak. */
import type { EventEmitter } from "node:events";
import { credentials, makeGenericClientConstructor, type ServiceError, status } from "@grpc/grpc-js";
import fc from "fast-check";
import { afterAll, beforeAll, expect, test } from "vitest";
import {
  heartbeat,
  openSession,
  startWorld,
  type World,
} from "../../control-plane/gateway/gateway.fixture.ts";
import { INPUTS, nearly } from "./mutations.ts";

const LIMIT_MS = 60_000 + INPUTS * 50;
const UNARY = ["Enrol", "Renew", "Recover"] as const;
const METHODS = [...UNARY, "Session", "Report", "Logs"] as const;
const isUnary = (name: string): name is (typeof UNARY)[number] => UNARY.some((unary) => unary === name);
/** What an agent may be told; not UNKNOWN, which is what an exception that nobody foresaw becomes. */
const FORESEEN = new Set([
  status.OK,
  status.CANCELLED,
  status.INVALID_ARGUMENT,
  status.UNAUTHENTICATED,
  status.PERMISSION_DENIED,
  status.RESOURCE_EXHAUSTED,
  status.FAILED_PRECONDITION,
  status.UNIMPLEMENTED,
  // Of the library, for bytes that are no protobuf.
  status.INTERNAL,
]);

interface Call extends EventEmitter {
  write(message: Buffer): void;
  end(): void;
}

let world: World;
beforeAll(async () => {
  world = await startWorld();
});
afterAll(async () => {
  await world?.stop();
});

const text = (value: string): Buffer => Buffer.concat([Buffer.from([value.length]), Buffer.from(value)]);
/** A few messages as protobuf has them: a field of bytes, a nested one, a number. */
const VALID = [
  Buffer.concat([Buffer.from([0x0a]), text("insitu-token"), Buffer.from([0x12]), text("agent")]),
  Buffer.concat([Buffer.from([0x0a, 0x06, 0x08, 0x01, 0x12, 0x02, 0x7b, 0x7d])]),
  Buffer.from([0x12, 0x04, 0x08, 0x01, 0x10, 0x00]),
];

test("whatever bytes an agent sends, it is answered, and other agents go on", {
  timeout: LIMIT_MS,
}, async () => {
  const identity = await world.join("dream", "fuzzer");
  const pass = (bytes: Buffer): Buffer => bytes;
  const definition = Object.fromEntries(
    METHODS.map((name) => [
      name,
      {
        path: `/insitu.agent.v1.AgentGateway/${name}`,
        requestStream: !isUnary(name),
        responseStream: !isUnary(name),
        requestSerialize: pass,
        requestDeserialize: pass,
        responseSerialize: pass,
        responseDeserialize: pass,
      },
    ]),
  );
  const Client = makeGenericClientConstructor(definition, "AgentGateway");
  const client = new Client(
    `localhost:${world.gateway.port}`,
    credentials.createSsl(
      Buffer.from(world.pki.caPem),
      Buffer.from(identity.keyPem),
      Buffer.from(identity.certificatePem),
    ),
  ) as unknown as Record<(typeof METHODS)[number], (...args: unknown[]) => Call>;
  const statuses = new Map<number, number>();
  const send = (method: (typeof METHODS)[number], messages: readonly Buffer[]): Promise<number> =>
    new Promise((resolve) => {
      if (isUnary(method)) {
        client[method](messages[0] ?? Buffer.alloc(0), (err: ServiceError | null) =>
          resolve(err?.code ?? status.OK),
        );
        return;
      }
      const call = client[method]();
      call.on("error", (err: ServiceError) => resolve(err.code));
      call.on("end", () => resolve(status.OK));
      call.on("data", () => undefined);
      for (const message of messages) call.write(message);
      call.end();
    });
  const property = fc.asyncProperty(
    fc.constantFrom(...METHODS),
    fc.array(nearly(...VALID), { minLength: 1, maxLength: 4 }),
    async (method, messages) => {
      const code = await send(method, messages);
      statuses.set(code, (statuses.get(code) ?? 0) + 1);
      expect(FORESEEN, `${method}: ${status[code]}`).toContain(code);
    },
  );
  await fc.assert(property, { numRuns: INPUTS });
  expect(statuses.get(status.INVALID_ARGUMENT)).toBeGreaterThan(0);
  (client as unknown as { close(): void }).close();

  const steady = await openSession(world.client(await world.join("dream", "steady")));
  steady.stream.write(heartbeat(1));
  expect((await steady.inbox.find((message) => message.heartbeatReply))?.seq).toBe("1");
  steady.stream.end();
});
