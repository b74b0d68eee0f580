import { connect, Events } from "nats";
import { expect, test } from "vitest";
import { startDeafProxy } from "../../test/support/deaf-proxy.ts";
import { startTestNats } from "../../test/support/nats.ts";
import { mendNatsTransport } from "./nats-transport.ts";

test("a dial that is answered too late is not the end of the connection that is used", {
  timeout: 20_000,
}, async () => {
  mendNatsTransport();
  await using nats = await startTestNats();
  await using proxy = await startDeafProxy(nats.port);
  const connection = await connect({
    servers: `127.0.0.1:${proxy.port}`,
    user: nats.user,
    pass: nats.password,
    maxReconnectAttempts: -1,
    reconnectTimeWait: 10,
    reconnectJitter: 0,
    timeout: 300,
  });
  let ends = 0;
  let back = (): void => {};
  const reconnected = new Promise<void>((resolve) => {
    back = resolve;
  });
  void (async () => {
    for await (const { type } of connection.status()) {
      if (type === Events.Disconnect) ends += 1;
      if (type === Events.Reconnect) back();
    }
  })();
  const whole = Buffer.alloc(20_000, "a");
  const got: number[] = [];
  connection.subscribe("bytes", {
    callback: (_err, { data }) => got.push(whole.equals(data) ? data.length : -1),
  });
  await connection.flush();

  proxy.hold();
  proxy.cut();
  // The first dial is given up, and another one made; then the server is heard on both.
  await expect.poll(() => proxy.came, { timeout: 5_000 }).toBeGreaterThanOrEqual(3);
  proxy.release();
  await reconnected;
  const { came } = proxy;
  // The server ends what says nothing to it.
  await expect.poll(() => proxy.open, { timeout: 10_000 }).toBe(1);
  for (let n = 0; n < 100; n += 1) connection.publish("bytes", whole);
  await connection.flush();
  expect(got).toEqual(Array.from({ length: 100 }, () => whole.length));
  expect({ came: proxy.came, ends }).toEqual({ came, ends: 1 });
  await connection.close();
});
