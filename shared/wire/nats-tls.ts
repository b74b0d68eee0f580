/** TLS towards NATS, for both sides. */

/**
 * The client's `tls` option. With `tls://` it is never left out: the client would then speak in the clear with a
 * server that offers no TLS, for example one that somebody put in between.
 *
 * @param caPem PEM of the authority to trust; empty for the system's
 */
export function tlsOf(servers: readonly string[], caPem: string): { tls?: { ca?: string } } {
  if (caPem !== "") return { tls: { ca: caPem } };
  return servers.some((server) => server.startsWith("tls:")) ? { tls: {} } : {};
}
