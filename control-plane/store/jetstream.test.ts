import { expect, test } from "vitest";
import { startDeafProxy } from "../../test/support/deaf-proxy.ts";
import { startTestNats } from "../../test/support/nats.ts";
import { connectNats } from "./jetstream.ts";

test("a tls:// address is never spoken to in the clear, also without a CA of its own", async () => {
  await using nats = await startTestNats();
  const target = { user: nats.user, password: nats.password, name: "test" };
  const plain = await connectNats({ ...target, servers: [`nats://127.0.0.1:${nats.port}`] });
  await plain.close();
  const refused = connectNats({ ...target, servers: [`tls://127.0.0.1:${nats.port}`] });
  await expect(refused).rejects.toMatchObject({
    code: "store.unavailable",
    cause: { message: expect.stringMatching(/tls|TLS/) },
  });
});

test("servers from which nothing comes any more are left for one that answers, within seconds", {
  timeout: 14_000,
}, async () => {
  await using nats = await startTestNats();
  await using one = await startDeafProxy(nats.port);
  await using two = await startDeafProxy(nats.port);
  await using three = await startDeafProxy(nats.port);
  const proxies = [one, two, three];
  const servers = proxies.map(({ port }) => `nats://127.0.0.1:${port}`);
  const connection = await connectNats({ servers, user: nats.user, password: nats.password, name: "test" });
  const current = () => proxies.find(({ port }) => connection.getServer().endsWith(`:${port}`))!;
  const first = current();
  const [second, third] = proxies.filter((proxy) => proxy !== first);
  for (const proxy of [first, second!]) proxy.deafen();
  for await (const { type } of connection.status()) if (type === "reconnect") break;
  expect(current()).toBe(third);
  await connection.close();
});
