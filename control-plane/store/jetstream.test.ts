import { expect, test } from "vitest";
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
