/** How an agent's connections are told apart on a port that takes all of them. See docs/adr/0039-one-port.md. */

/**
 * ALPN name of the way to NATS: after the handshake, in which the agent shows its certificate, it names the server that it
 * means as to an HTTP proxy (`CONNECT host:port HTTP/1.1`), and what follows the 200 is NATS's own.
 */
export const NATS_ALPN = "insitu-nats/1";

/** ALPN name of gRPC, which is HTTP/2. */
export const GRPC_ALPN = "h2";
