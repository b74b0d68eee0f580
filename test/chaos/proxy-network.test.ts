import { once } from "node:events";
import { connect, createServer, type Socket } from "node:net";
import { expect, test } from "vitest";
import type { Fault, FaultKind } from "./faults.ts";
import { ProxyNetwork } from "./proxy-network.ts";

function fault(kind: FaultKind, pairs: Fault["pairs"]): Fault {
  return { id: 1, kind, target: "", pairs, atMs: 0, lengthMs: 0, amountMs: 0, lossPercent: 0 };
}

/** We are the party `a`; `b` sends back what it hears. */
async function pair() {
  const network = new ProxyNetwork(() => [[process.pid, "a"]]);
  for (const party of ["a", "b"]) network.host(party);
  const [port] = (await network.ports("b", 1)) as [number];
  const sockets: Socket[] = [];
  const heard: string[] = [];
  const server = createServer((socket) => {
    sockets.push(socket);
    socket.on("error", () => undefined);
    socket.on("data", (bytes) => {
      heard.push(String(bytes));
      socket.write(bytes);
    });
  });
  server.listen(port, network.host("b"));
  await once(server, "listening");
  const host = await network.open("b", port);
  const client = connect({ host, port });
  client.on("error", () => undefined);
  await once(client, "connect");
  client.write("first");
  await once(client, "data");
  return {
    network,
    client,
    server,
    heard,
    async [Symbol.asyncDispose]() {
      client.destroy();
      for (const socket of sockets) socket.destroy();
      server.close();
      await network[Symbol.asyncDispose]();
    },
  };
}

test("parties that do not listen yet have ports of their own all the same", async () => {
  await using network = new ProxyNetwork(() => []);
  const ports = [...(await network.ports("a", 3)), ...(await network.ports("b", 3))];
  expect(new Set(ports).size).toBe(6);
});

test("one way: what comes from b waits, what goes to it arrives, and nothing is lost", async () => {
  await using link = await pair();
  const broken = fault("one-way", [["b", "a"]]);
  link.network.break(broken);
  const events: string[] = [];
  const echoed = once(link.client, "data").then(([bytes]) => events.push(`echo of ${bytes}`));
  link.client.write("second");
  while (link.heard.length < 2) await new Promise((resolve) => setImmediate(resolve));
  events.push("healed");
  link.network.heal(broken);
  await echoed;
  expect(events).toEqual(["healed", "echo of second"]);
});

test("a cut resets the connection, and the next one too until it is healed", async () => {
  await using link = await pair();
  const broken = fault("cut", [["a", "b"]]);
  const closed = once(link.client, "close");
  link.network.break(broken);
  await closed;
  const address = {
    host: link.client.remoteAddress ?? "127.0.1.2",
    port: (link.server.address() as { port: number }).port,
  };
  const refused = connect(address);
  refused.on("error", () => undefined);
  await once(refused, "close");
  link.network.heal(broken);
  const again = connect(address);
  again.write("third");
  expect(String((await once(again, "data"))[0])).toBe("third");
  again.destroy();
});
