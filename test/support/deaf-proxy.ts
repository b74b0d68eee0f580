/** A TCP proxy on loopback that can keep back what the server answers, as a network that loses it would. */
import { once } from "node:events";
import { connect, createServer, type Socket } from "node:net";

export interface DeafProxy extends AsyncDisposable {
  readonly port: number;
  /** From now on nothing of what the server says arrives; what clients say goes through. */
  deafen(): void;
  /** From now on what the server says waits, until `release`: as where packets are lost and sent again. */
  hold(): void;
  release(): void;
  /** How many connections came, and how many are there now. */
  readonly came: number;
  readonly open: number;
  /** Cuts all connections. Those that come afterwards hear again. */
  cut(): void;
}

export async function startDeafProxy(port: number): Promise<DeafProxy> {
  const sockets = new Set<Socket>();
  const clients = new Set<Socket>();
  let held: (() => void)[] | undefined;
  let deaf = false;
  let came = 0;
  const server = createServer((client) => {
    came += 1;
    clients.add(client);
    client.once("close", () => clients.delete(client));
    const upstream = connect(port, "127.0.0.1");
    for (const socket of [client, upstream]) {
      sockets.add(socket);
      socket.on("error", () => socket.destroy());
      socket.on("close", () => {
        sockets.delete(socket);
        client.destroy();
        upstream.destroy();
      });
    }
    client.pipe(upstream);
    upstream.on("data", (bytes) => {
      if (held) held.push(() => client.write(bytes));
      else if (!deaf) client.write(bytes);
    });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const cut = (): void => {
    for (const socket of sockets) socket.destroy();
  };
  return {
    port: (server.address() as { port: number }).port,
    deafen() {
      deaf = true;
    },
    hold() {
      held ??= [];
    },
    release() {
      const writes = held ?? [];
      held = undefined;
      for (const write of writes) write();
    },
    get came() {
      return came;
    },
    get open() {
      return clients.size;
    },
    cut() {
      deaf = false;
      cut();
    },
    async [Symbol.asyncDispose]() {
      cut();
      await once(server.close(), "close");
    },
  };
}
