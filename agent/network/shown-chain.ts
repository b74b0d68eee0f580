/** Which certificates a TLS server shows, and whether they lead to who we trust. Nothing is sent to it or believed. */
import { createHash, X509Certificate } from "node:crypto";
import { type DetailedPeerCertificate, type PeerCertificate, connect as tlsConnect } from "node:tls";
import { InsituError } from "../../shared/errors.ts";
import { addressOf, type HostAndPort, serverNameOf } from "./address.ts";
import { dial, type WayOut } from "./dial.ts";

const HANDSHAKE_TIMEOUT_MS = 10_000;
const CHAIN_MAX = 10;

export interface Shown {
  /** The server's own first. */
  chain: X509Certificate[];
  /** OpenSSL's or Node's word for what is wrong when `caPem` alone is trusted; undefined when all is well. */
  trouble: string | undefined;
  /** `TLSv1.3` */
  protocol: string;
}

/** @throws unreachable, auth.denied as `dial` does; unreachable too when the other side speaks no TLS */
export async function shownChain(way: WayOut, target: HostAndPort, caPem?: Buffer): Promise<Shown> {
  const raw = await dial(way, target);
  const { host } = target;
  return await new Promise((resolve, reject) => {
    const socket = tlsConnect({
      socket: raw,
      host,
      rejectUnauthorized: false,
      ALPNProtocols: ["h2"],
      servername: serverNameOf(host),
      ...(caPem === undefined ? {} : { ca: caPem }),
    });
    const finish = (reason?: string, cause?: unknown): void => {
      timer.cancel();
      socket.on("error", () => undefined).destroy();
      raw.destroy();
      if (reason === undefined) return;
      const message = `${addressOf(target)} does not complete TLS: ${reason}`;
      reject(new InsituError("unreachable", message, { retryable: true, cause }));
    };
    const timer = way.clock.after(HANDSHAKE_TIMEOUT_MS, () =>
      finish(`no answer within ${HANDSHAKE_TIMEOUT_MS} ms`),
    );
    socket.once("error", (err) => finish(err.message, err));
    socket.once("close", () => finish("it closed the connection"));
    socket.once("secureConnect", () => {
      const chain = unfold(socket.getPeerCertificate(true));
      // A string at run time, whatever its type says.
      const trouble = socket.authorized ? undefined : String(socket.authorizationError);
      const protocol = socket.getProtocol() ?? "";
      socket.removeAllListeners("close");
      finish();
      resolve({ chain, trouble, protocol });
    });
  });
}

function unfold(leaf: DetailedPeerCertificate): X509Certificate[] {
  const chain: X509Certificate[] = [];
  let current: DetailedPeerCertificate | PeerCertificate | undefined = leaf;
  while (current?.raw && chain.length < CHAIN_MAX) {
    chain.push(new X509Certificate(current.raw));
    const issuer: DetailedPeerCertificate | undefined =
      "issuerCertificate" in current ? current.issuerCertificate : undefined;
    if (!issuer || issuer === current) break;
    current = issuer;
  }
  return chain;
}

/** As join tokens say it: `sha256:` and the hexadecimal SHA-256 of the SubjectPublicKeyInfo. */
export function pinOf(certificate: X509Certificate): string {
  const spki = certificate.publicKey.export({ type: "spki", format: "der" });
  return `sha256:${createHash("sha256").update(spki).digest("hex")}`;
}
