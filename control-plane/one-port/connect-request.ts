/** The one request that is understood on the way to NATS: `CONNECT host:port HTTP/1.1` (RFC 9110 §9.3.6). */
import type { Socket } from "node:net";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";

const HEAD_MAX_BYTES = 4_096;

/**
 * Reads up to the empty line, and not a byte further: what follows is NATS's.
 *
 * @returns `host:port`
 * @throws request.invalid, timeout; cancelled when the other side goes away
 */
export function readHead(socket: Socket, clock: Clock, withinMs: number): Promise<string> {
  return new Promise((resolve, reject) => {
    let head = Buffer.alloc(0);
    const finish = (err?: InsituError): void => {
      timer.cancel();
      socket.off("readable", onReadable).off("close", onClose).off("end", onClose);
      if (err) reject(err);
    };
    const onReadable = (): void => {
      const bytes = socket.read() as Buffer | null;
      if (bytes === null) return;
      head = Buffer.concat([head, bytes]);
      const end = head.indexOf("\r\n\r\n");
      if (end < 0) {
        if (head.length > HEAD_MAX_BYTES)
          finish(new InsituError("request.invalid", "the request has no end"));
        return;
      }
      const target = targetOf(head.subarray(0, end).toString("latin1"));
      if (target === undefined)
        return finish(new InsituError("request.invalid", "only CONNECT is known here"));
      finish();
      if (end + 4 < head.length) socket.unshift(head.subarray(end + 4));
      resolve(target);
    };
    const onClose = (): void => finish(new InsituError("cancelled", "it went away before it asked"));
    const timer = clock.after(withinMs, () =>
      finish(new InsituError("timeout", `no request came within ${withinMs} ms`)),
    );
    socket.on("readable", onReadable).once("close", onClose).once("end", onClose);
  });
}

/** Undefined for any other request. */
function targetOf(head: string): string | undefined {
  return /^CONNECT (\S+:\d{1,5}) HTTP\/1\.1(?:\r\n|$)/.exec(head)?.[1];
}
