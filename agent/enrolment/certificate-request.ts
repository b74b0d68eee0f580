/**
 * Certificate requests: PKCS#10 (RFC 2986) in DER. Written here, because a library for certificates would cost a running
 * agent 17 MB, for ever, when it renews its identity.
 */
import { createPrivateKey, createPublicKey, sign } from "node:crypto";

const SEQUENCE = 0x30;
const SET = 0x31;
const UTF8_STRING = 0x0c;
const BIT_STRING = 0x03;
const VERSION_1 = Buffer.from("020100", "hex");
const NO_ATTRIBUTES = Buffer.from("a000", "hex");
const COMMON_NAME = Buffer.from("0603550403", "hex");
const ECDSA_WITH_SHA256 = Buffer.from("06082a8648ce3d040302", "hex");

/**
 * Signed with the key, and for it.
 *
 * @param name the control plane takes none from a request; it helps whoever reads one
 * @param keyPem EC P-256, PKCS#8
 */
export function certificateRequest(name: string, keyPem: Buffer): Buffer {
  const key = createPrivateKey(keyPem);
  const spki = createPublicKey(key).export({ type: "spki", format: "der" });
  const commonName = der(SEQUENCE, COMMON_NAME, der(UTF8_STRING, Buffer.from(name, "utf8")));
  const subject = der(SEQUENCE, der(SET, commonName));
  const info = der(SEQUENCE, VERSION_1, subject, spki, NO_ATTRIBUTES);
  const signature = der(BIT_STRING, Buffer.of(0), sign("sha256", info, key));
  return der(SEQUENCE, info, der(SEQUENCE, ECDSA_WITH_SHA256), signature);
}

function der(tag: number, ...parts: Buffer[]): Buffer {
  const body = Buffer.concat(parts);
  const { length } = body;
  const size =
    length < 0x80 ? [length] : length < 0x100 ? [0x81, length] : [0x82, length >> 8, length & 0xff];
  return Buffer.concat([Buffer.from([tag, ...size]), body]);
}
