/**
 * Mends two faults in how the NATS client (nats 2.29.3) gives a connection up. Both make one parser read the bytes of two
 * connections: messages arrive cut, joined or not at all, and nothing says so.
 *
 * - A dial that takes longer than `timeout` is passed over but not ended. When the server answers late and then closes
 *   what it heard nothing from, the client takes the end of that connection for the end of the one that it uses, and dials
 *   once more beside it.
 * - What a connection had received and not handed on when it ended goes to the parser of the next.
 */
import { NodeTransport } from "nats/lib/src/node_transport.js";

let mended = false;

/** Before the first connection of the process. Twice is once. */
export function mendNatsTransport(): void {
  if (mended) return;
  mended = true;
  const { prototype } = NodeTransport;
  const { close, setupHandlers, iterate } = prototype;
  const givenUp = new WeakSet<NodeTransport>();

  prototype.close = function (this: NodeTransport, err?: Error) {
    if (!this.connected) {
      givenUp.add(this);
      this.socket?.destroy();
    }
    return close.call(this, err);
  };
  prototype.setupHandlers = function (this: NodeTransport) {
    // `connect`, which calls this last, destroys the socket, and nobody is told.
    if (givenUp.has(this)) throw new Error("the connection was given up before it was there");
    setupHandlers.call(this);
  };
  prototype.iterate = async function* (this: NodeTransport) {
    for await (const frame of iterate.call(this)) {
      if (this.isClosed) return;
      yield frame;
    }
  };
}
