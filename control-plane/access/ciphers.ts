/** The ciphers of every TLS port that this process opens. */
import tls from "node:tls";

/**
 * TLS 1.3's own, and of TLS 1.2 those with forward secrecy and authenticated encryption (RFC 9325, 4.2).
 * For the whole process: the gRPC library takes no list for one server.
 */
export function limitCiphers(): void {
  tls.DEFAULT_CIPHERS = [
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_AES_128_GCM_SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
  ].join(":");
}
