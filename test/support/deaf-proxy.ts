/** A TCP proxy on loopback that can keep back what the server answers, as a network that loses it would. */
import { once } from "node:events";
import { connect, createServer, type Socket } from "node:net";

export interface DeafProxy extends AsyncDisposable {
  readonly port: number;
  /** From now on nothing of what the server says arrives; what clients say goes through. */
  deafen(): void;
  /** Cuts all connections. Those that come afterwards hear again. */
  cut(): void;
}

export async function startDeafProxy(port: number): Promise<DeafProxy> {
  const sockets = new Set<Socket>();
  let deaf = false;
  const server = createServer((client) => {
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
      if (!deaf) client.write(bytes);
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
